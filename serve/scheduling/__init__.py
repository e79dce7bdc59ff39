"""Run many answers together: rows of caches, and the loop that admits, steps and ends them."""
