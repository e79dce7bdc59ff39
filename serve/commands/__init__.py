"""The verbs that run artifacts: ``eval``, ``bench``, ``run``."""
