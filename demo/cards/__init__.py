"""Cards of the page: an artifact's result, beside the original's."""
