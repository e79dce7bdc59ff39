"""Cards of the page: what an artifact answered, beside what the original did."""
