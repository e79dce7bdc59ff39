"""Import the code that a record names."""

from functools import reduce
from importlib import import_module
from typing import Any


def resolve(path: str) -> Any:
    """Import the code that a record names: ``module:attribute``, or a module."""
    module, _, names = path.partition(":")
    return reduce(getattr, names.split(".") if names else (), import_module(module))
