"""Weights of a checkpoint, read one at a time, and cut by a plan."""
