"""Weights of a checkpoint, read one at a time, and what a plan leaves of them."""
