"""Tokens in torch: their state in a forward pass, drop rules, merging, selection of image tokens."""
