"""Tokens in torch: drop rules, merging, selection of image tokens, and their state in a forward pass."""
