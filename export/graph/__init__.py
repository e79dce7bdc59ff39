"""Graph pieces that all families are built from."""
