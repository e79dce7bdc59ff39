"""Readers of data files, one for each format. ``comp.data.loading`` chooses among them."""
