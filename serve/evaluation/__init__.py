"""Accuracy of an artifact, by the metric of its task."""
