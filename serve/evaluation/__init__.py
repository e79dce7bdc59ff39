"""Measure the accuracy of an artifact with the metric of its task."""
