"""Graphs in OpenVINO: compiled for this CPU, with paged caches and pre-bound requests."""
