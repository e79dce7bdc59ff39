"""Training of the embedded models: scripts, not part of a pruning run."""
