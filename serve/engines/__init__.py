"""Engines, one for each task: from pictures and words to answers, captions, statements or rankings.

What runs the graphs is in ``serve.backends``; choosing tokens is in ``serve.generation``.
"""
