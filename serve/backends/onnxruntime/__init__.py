"""ONNX Runtime: sessions, execution providers and their compiled kernels."""
