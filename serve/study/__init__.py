"""Studies: a grid of methods, rates and seeds for one model, resumable cell by cell."""
