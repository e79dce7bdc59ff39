"""Export a checkpoint and its plan to files that run elsewhere, and verify them."""
