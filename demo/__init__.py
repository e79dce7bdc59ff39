"""The page that shows it: original and compressed side by side."""
