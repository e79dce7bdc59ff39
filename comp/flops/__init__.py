"""Multiply-accumulates and parameters, counted from sizes alone. Loads no torch."""
