"""Engines of CLIP and BLIP: retrieval, statements, answers and captions."""
