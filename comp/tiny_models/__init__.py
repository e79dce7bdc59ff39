"""How the embedded models were trained: scripts, not part of a pruning run."""
