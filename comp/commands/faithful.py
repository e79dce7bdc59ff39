"""``prune --faithful``: the paper's recipe, whatever the defaults become."""

from collections.abc import Mapping
from typing import Any

import click

from comp.errors import CompExportError

RECIPE: dict[str, object] = {
    "method": "comp",
    "distill": "none",
    "cost": "flops",
    "cost_metric": "accuracy",
    "cost_examples": None,  # the whole validation set
    "race": 0,
    "exploration": 0.2,
    "temperature": 5.0,
    "history": 0.4,
    "no_reconstruction": True,
    "train_stages": True,
    "no_cip": False,
    "no_cit": False,
    "no_cas": False,
    "no_exploration": False,
    "no_history": False,
    "undo": False,
}
"""Options of ``prune`` by the names of its parameters. Modes, data, steps and rate are the user's."""


def take_as_defaults(context: click.Context, _option: Any, faithful: bool) -> bool:
    """What an eager flag calls back: the recipe becomes the other options' defaults."""
    if faithful:
        context.default_map = {**(context.default_map or {}), **RECIPE}
    return faithful


def check_faithful(options: Mapping[str, object]) -> None:
    """Refuse options that leave the recipe.

    Raises:
        CompExportError: naming the first that does.
    """
    for name, value in RECIPE.items():
        if options[name] != value:
            given = f"--{'no-' * (options[name] is False)}{name.replace('_', '-')}"
            if not isinstance(value, bool):
                given += f" {options[name]}"
            raise CompExportError(
                f"{given} is not of the paper's recipe, which --faithful asks for: leave one of them out"
            )
