"""``comp-export data``: look at the embedded dataset."""

from itertools import islice
from pathlib import Path

import click

from comp.console import print_json, say
from comp.options import CommonOptions, common_options


@click.group()
def command() -> None:
    """Look at the embedded dataset, EmojiScenes, or at your own."""


@command.command()
@click.option(
    "--split",
    type=click.Choice(("train", "validation", "test")),
    default="test",
    show_default=True,
    help="Split of EmojiScenes.",
)
@click.option("--start", type=click.IntRange(min=0), default=0, help="First example shown.")
@click.option(
    "--count", type=click.IntRange(1, 400), default=24, show_default=True, help="Examples shown."
)
@click.option(
    "--columns", type=click.IntRange(1, 20), default=6, show_default=True, help="Pictures a row."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Show your own data instead: LLaVA-Instruct JSON, or JSONL of image, question, answer.",
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that image names of --data start in."
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
    split: str,
    start: int,
    count: int,
    columns: int,
    data: Path | None,
    images: Path | None,
    out: Path,
    options: CommonOptions,
) -> None:
    """Write a contact sheet (PNG): pictures with their questions and answers."""
    from comp.data.contact_sheet import contact_sheet
    from comp.data.emoji_scenes import EmojiScenes
    from comp.data.user_data import load_examples
    from comp.errors import CompExportError
    from comp.files import writing

    if data is None:
        scenes = EmojiScenes(split, start + count)
        examples = [scenes[index] for index in range(start, start + count)]
        source = f"EmojiScenes {split}"
    else:
        own = load_examples(data, images)
        if start >= len(own):
            raise CompExportError(f"--start {start}: {data} holds {len(own)} questions")
        examples = list(islice((own[index] for index in range(start, len(own))), count))
        source = str(data)
    sheet = contact_sheet(examples, columns)
    with writing(out) as temporary:
        sheet.save(temporary, format="PNG")
    if options.json:
        questions = [
            {"kind": example.kind, "question": example.question, "answer": example.answer}
            for example in examples
        ]
        print_json({"file": str(out), "source": source, "start": start, "examples": questions})
    else:
        say(f"{len(examples)} examples of {source}, from {start} on: {out}")
