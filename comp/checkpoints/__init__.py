"""A checkpoint on disk: where it is, what its files say, and what of them is refused.

Reads configuration, tensors' headers, templates and image processors. Loads no torch and no transformers.
"""
