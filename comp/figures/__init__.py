"""Figures of a run, and what they show of the method: shares of modes, tokens that decide, stable ranks."""
