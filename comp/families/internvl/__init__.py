"""InternVL: tiles, InternViT, pixel shuffle, and a Qwen2 or Qwen3 decoder."""
