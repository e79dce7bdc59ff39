"""Studies: a grid of methods, rates and seeds on one model, resumable cell by cell."""
