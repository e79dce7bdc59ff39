"""Data: the embedded EmojiScenes dataset and loaders for a user's own questions."""
