"""One pruning run from start to end: request, defaults, steps and the run directory."""
