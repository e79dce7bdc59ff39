"""The verbs ``prune``, ``flops``, ``inspect``, ``data`` and ``models``: options and printing, no algorithm.

Modules that load torch are imported inside the commands, so that ``--help`` answers at once.
"""
