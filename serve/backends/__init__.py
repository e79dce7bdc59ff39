"""Ways to run an artifact, behind one interface: ONNX Runtime and TensorRT."""
