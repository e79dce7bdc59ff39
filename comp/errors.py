"""The one error a user of ``comp-export`` sees."""


class CompExportError(Exception):
    """Names the thing, the value and the remedy; the command line prints it without a traceback."""
