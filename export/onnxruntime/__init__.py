"""Graphs in plain ONNX Runtime, for verification and timing. ``serve`` answers users."""
