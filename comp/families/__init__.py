"""Families of models: a package for each, and the parts that they share.

The algorithm uses a family only through ``comp.adapter``.
"""
