"""Predicted milliseconds of a request: the table of a machine, and what a request is made of.

Measuring such a table is ``export.latency``.
"""
