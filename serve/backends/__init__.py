"""Backends that run an artifact through one interface: ONNX Runtime, OpenVINO and TensorRT."""
