"""EmojiScenes: procedural scenes with questions, captions and statements, deterministic by (split, index)."""
