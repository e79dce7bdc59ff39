"""Count multiply-accumulates and parameters from sizes alone. Loads no torch."""
