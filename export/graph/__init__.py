"""Pieces that graphs of every family are built from."""
