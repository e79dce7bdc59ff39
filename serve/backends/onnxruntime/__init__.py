"""ONNX Runtime: sessions, execution providers and caches of compiled kernels."""
