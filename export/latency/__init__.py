"""Measuring a model's blocks in ONNX Runtime: the tables that ``comp.latency.table`` reads."""
