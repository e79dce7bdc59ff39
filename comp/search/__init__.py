"""MPS, the multi-mode pruning strategy: stages, costs, saved state and the final plan."""
