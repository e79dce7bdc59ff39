"""The first link of verification: a user's pictures and words in transformers and in the engines."""
