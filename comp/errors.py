"""The error that users of ``comp-export`` see."""


class CompExportError(Exception):
    """Expected failure; the message names the object, the value and the remedy, without a traceback."""
