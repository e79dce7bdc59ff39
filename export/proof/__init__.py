"""Verification: transformers on raw inputs, masked torch, slim torch and every runtime must agree."""
