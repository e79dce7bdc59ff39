"""CLIP: an image tower and a text tower, compared by their embeddings."""
