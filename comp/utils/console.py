"""Print the output of commands: tables and progress for people, one JSON object for machines.

Progress goes to stderr; stdout has the result and nothing else.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

PIPE_WIDTH = 400  # columns of a pipe, which has no width: output for scripts is not wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def stderr_console() -> "Console":
    """Return a rich console on stderr, with plain text if stderr is no terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress_bar() -> "AbstractContextManager[Progress]":
    """Return a rich progress display on stderr; its tasks have a field ``left``, the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        console=stderr_console(),
        transient=True,
    )


def say(message: str) -> None:
    """Print a line on stderr."""
    click.echo(message, err=True)


def print_json(result: Mapping[str, Any]) -> None:
    """Print exactly one JSON object on stdout.

    Raises:
        ValueError: the result holds NaN or infinities, which JSON cannot represent.
    """
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers_from: int = 1
) -> None:
    """Print a table on stdout; the columns from ``numbers_from`` on are right-aligned.

    On a narrow terminal cells are wrapped, the first column last. Nothing is cut off.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        justify: JustifyMethod = "right" if place >= numbers_from else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(title, soft_wrap=True)
    console.print(table)


def print_entries(title: str, entries: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Print names on stdout, each with lines of text below it, wrapped to the terminal."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(title, soft_wrap=True)
    for name, lines in entries:
        console.print(f"\n  {name}", soft_wrap=True)
        for line in lines:
            console.print(Padding(line, (0, 0, 0, 6), expand=False), overflow="fold")
    console.print()
