"""Command ``comp-export data``: look at the embedded datasets, or at a user's own data."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from comp.commands.options import CommonOptions, common_options, data_options
from comp.utils.console import print_json, say

if TYPE_CHECKING:
    from comp.data.example import Example, PairExample
    from comp.data.formats.karpathy import KarpathySplit

Shown = Literal["questions", "captions", "statements"]
TASKS: tuple[Shown, ...] = ("questions", "captions", "statements")
EXAMPLES_OF: dict[Shown, Literal["question", "caption", "statement"]] = {
    "questions": "question",
    "captions": "caption",
    "statements": "statement",
}
COLUMNS, COLUMNS_OF_PAIRS = 6, 3


@click.group()
def command() -> None:
    """Look at the embedded dataset, EmojiScenes, or at your own."""


@command.command()
@click.option(
    "--task", type=click.Choice(TASKS), default="questions", show_default=True, help="What to show."
)
@click.option(
    "--split",
    type=click.Choice(("train", "validation", "test")),
    default="test",
    show_default=True,
    help="Split of EmojiScenes, or of Karpathy's JSON.",
)
@click.option("--start", type=click.IntRange(min=0), default=0, help="First example shown.")
@click.option(
    "--count", type=click.IntRange(1, 400), default=24, show_default=True, help="Examples shown."
)
@click.option(
    "--columns", type=click.IntRange(1, 20), help="Examples a row [default: 6; statements: 3]."
)
@data_options(
    "Show your own data instead: any file that prune takes, NLVR2's too.",
    "Folder that image names of --data are relative to.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data-preview.png"),
    show_default=True,
    help="PNG to write.",
)
@common_options
def preview(
    task: Shown,
    split: "KarpathySplit",
    start: int,
    count: int,
    columns: int | None,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    out: Path,
    options: CommonOptions,
) -> None:
    """Write a contact sheet (PNG): pictures with their questions and answers, captions or statements."""
    from comp.data.emoji_scenes.contact_sheet import contact_sheet
    from comp.errors import CompExportError
    from comp.utils.disk import check_file_place
    from comp.utils.files import writing

    check_file_place(out)

    if data is None:
        dataset, source = _embedded(task, split, start + count), f"EmojiScenes {split}"
    else:
        dataset, source = _own(task, data, images, split, follow_links), str(data)
    if start >= len(dataset):
        raise CompExportError(f"--start {start}: {source} holds {len(dataset)} {task}")
    examples = list(islice((dataset[index] for index in range(start, len(dataset))), count))
    sheet = contact_sheet(
        examples, columns or (COLUMNS_OF_PAIRS if task == "statements" else COLUMNS)
    )
    with writing(out) as temporary:
        sheet.save(temporary, format="PNG")
    if options.json:
        shown = [_words(example) for example in examples]
        print_json({"file": str(out), "source": source, "start": start, "examples": shown})
    else:
        say(f"{len(examples)} {task} of {source}, from {start} on: {out}")


def _embedded(task: Shown, split: str, size: int) -> "Sequence[Example] | Sequence[PairExample]":
    from comp.data.embedded import embedded_examples

    of = {"questions": "question", "captions": "retrieval", "statements": "statement"}
    return embedded_examples(of[task], split, size)


def _own(
    task: Shown, data: Path, images: Path | None, split: "KarpathySplit", follow_links: bool
) -> "Sequence[Example] | Sequence[PairExample]":
    from comp.data.loading import has_splits, load_task_data, tasks_of
    from comp.errors import CompExportError

    held = [name for name in TASKS if EXAMPLES_OF[name] in tasks_of(data)]
    if held and task not in held:
        raise CompExportError(f"{data} holds {held[0]}: give --task {held[0]}")
    of = split if has_splits(data) else None
    return load_task_data(EXAMPLES_OF[task], data, images, of, follow_links)


def _words(example: "Example | PairExample") -> dict[str, Any]:
    from comp.data.example import PairExample

    if isinstance(example, PairExample):
        words = {"statement": example.statement, "answer": example.answer}
    elif example.question:
        words = {"question": example.question, "answer": example.answer}
    else:
        words = {"caption": example.answer}
    return {"kind": example.kind, **words}
