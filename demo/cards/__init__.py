"""Cards of the page: the result of each model."""
