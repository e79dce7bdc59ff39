"""The proof's first link: pictures and words as users have them, in transformers and in what users call."""
