"""Predict milliseconds of a request from the latency table of a machine.

``export.latency`` measures such tables.
"""
