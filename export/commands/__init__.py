"""The commands ``onnx`` and ``verify``."""
