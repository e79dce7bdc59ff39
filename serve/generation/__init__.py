"""Generating: options, sampling, one answer in the making, events and results."""
