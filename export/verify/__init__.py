"""The proof: transformers on raw inputs, masked torch, slim torch and every runtime say the same."""
