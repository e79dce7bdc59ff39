"""Run engines on a GPU: memory, streams and request buffers."""
