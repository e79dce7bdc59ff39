"""An artifact on disk: manifests, loading them, caches and checks of its files. Loads no torch and no onnx."""
