"""An artifact on disk: manifests, loading them, caches, checks. Loads no torch and no onnx."""
