"""Metrics of answers, captions and rankings, computed from words and numbers alone."""
