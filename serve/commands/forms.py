"""The options that name which artifacts of a run a command uses."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from export.manifest import Flavour, Precision
from serve.artifacts import Form

F = TypeVar("F", bound=Callable[..., Any])


def form_options(function: F) -> F:
    """Add ``--flavour`` and ``--precision`` to a command; passed on as ``form: Form``."""

    @click.option(
        "--flavour",
        type=click.Choice(["onnxruntime", "standard"]),
        default="onnxruntime",
        show_default=True,
        help="Flavour of the artifacts to use.",
    )
    @click.option(
        "--precision",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="Precision of the artifacts to use.",
    )
    @functools.wraps(function)
    def wrapper(*args: Any, flavour: Flavour, precision: Precision, **kwargs: Any) -> Any:
        return function(*args, form=Form(flavour, precision), **kwargs)

    return cast(F, wrapper)
