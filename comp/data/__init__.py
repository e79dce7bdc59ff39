"""Datasets: the embedded EmojiScenes, and readers of a user's own files.

Metrics are in ``comp.metrics``; batches of a family are in ``comp.families``.
"""
