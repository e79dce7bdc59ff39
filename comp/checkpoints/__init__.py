"""Checkpoints on disk: locate them, read their files, and refuse what cannot be used.

Reads configurations, tensor headers, templates and image processors. Loads no torch and no transformers.
"""
