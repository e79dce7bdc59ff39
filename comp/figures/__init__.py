"""Figures of a run: trajectory, structure, shares of modes, overlap of tokens, stability of ranks."""
