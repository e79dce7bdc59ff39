"""The demo page: the original and the compressed model side by side."""
