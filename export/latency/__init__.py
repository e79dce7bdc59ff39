"""Measure a model's blocks in ONNX Runtime for the tables that ``comp.latency.table`` reads."""
