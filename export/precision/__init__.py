"""Numbers narrower than float32: measured activations, and which layers stay wide."""
