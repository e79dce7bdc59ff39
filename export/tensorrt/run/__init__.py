"""Running engines on a GPU: memory, streams and slots."""
