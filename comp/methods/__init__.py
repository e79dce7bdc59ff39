"""Pruning methods: one file each, all returning a ``PruningPlan``."""
