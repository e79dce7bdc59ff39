"""Ways to run an artifact, behind one interface: ONNX Runtime, OpenVINO and TensorRT."""
