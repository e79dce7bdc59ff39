"""Graphs in OpenVINO: compiled for this CPU, with paged caches and bound requests."""
