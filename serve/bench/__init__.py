"""Measure speed, memory and size of artifacts in turn."""
