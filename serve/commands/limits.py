"""The options that bound requests and memory of a server, whatever serves."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
LIMITS = (
    click.option(
        "--max-num-seqs",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Most answers of a model that run together.",
    ),
    click.option(
        "--max-queue",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        help="Most requests of a model that wait; others are refused, over HTTP with status 429.",
    ),
    click.option(
        "--max-model-len",
        type=click.IntRange(min=2),
        help="Most tokens of a prompt with its answer [the model's positions].",
    ),
    click.option(
        "--cache-memory",
        type=click.FloatRange(min=0, min_open=True),
        default=2.0,
        show_default=True,
        help="GiB for the key/value caches of a model's answers; bounds how many run together.",
    ),
    click.option(
        "--prefix-memory",
        type=click.FloatRange(min=0),
        default=0.5,
        show_default=True,
        help="GiB for the caches of earlier prompts of a model that drops no tokens; prompts that begin "
        "alike, as the turns of a conversation, read only what is new. 0 keeps none.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Longest answer in tokens, if the request names none.",
    ),
    click.option(
        "--max-images",
        type=click.IntRange(min=0),
        default=16,
        show_default=True,
        help="Most images of a request.",
    ),
)


def limit_options(function: F) -> F:
    """Add ``--max-num-seqs`` to ``--max-images``, each passed by its name."""
    for option in reversed(LIMITS):
        function = option(function)
    return function
