"""Scores of answers, captions and rankings, from words and numbers alone."""
