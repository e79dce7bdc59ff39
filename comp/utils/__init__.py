"""Utilities: files, locks, console, JSON, machine, compute."""
