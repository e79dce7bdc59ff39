"""Graphs in plain ONNX Runtime, to prove and to time them. ``serve`` answers users."""
