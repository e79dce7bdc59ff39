"""BLIP: an image tower and text models, for captions, questions, retrieval and statements."""
