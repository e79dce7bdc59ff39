"""Artifacts on disk: manifests, loading, caches, checks. Loads neither torch nor onnx."""
