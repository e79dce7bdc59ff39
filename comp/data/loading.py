"""Load data files; the task and the content of the file, not its name, choose the reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from comp.data.example import Example, PairExample
from comp.data.formats.karpathy import KarpathySplit, load_karpathy
from comp.data.formats.nlvr2 import load_nlvr2
from comp.data.formats.records import Records, image_folder, read_text
from comp.data.formats.user_data import load_captions, load_conversations, load_questions
from comp.data.formats.vqav2 import load_vqav2
from comp.errors import CompExportError
from comp.utils.json_files import MAX_DEPTH

DataTask = Literal["question", "caption", "retrieval", "statement"]
DataFormat = Literal["conversations", "vqav2", "annotations", "karpathy", "statements", "lines"]

NAMES: dict[DataFormat, str] = {
    "conversations": "LLaVA-Instruct JSON",
    "vqav2": "VQAv2's questions",
    "annotations": "VQAv2's annotations",
    "karpathy": "Karpathy's JSON of captions",
    "statements": "NLVR2's statements",
    "lines": "JSONL about single images",
}
READ_BY: dict[DataTask, tuple[DataFormat, ...]] = {
    "question": ("conversations", "vqav2", "lines"),
    "caption": ("karpathy", "lines"),
    "retrieval": ("karpathy", "lines"),
    "statement": ("statements",),
}
WANTED: dict[DataTask, str] = {
    "question": "LLaVA-Instruct JSON, VQAv2's questions, or JSONL of image, question, answer",
    "caption": "Karpathy's JSON, or JSONL of image, caption",
    "retrieval": "Karpathy's JSON, or JSONL of image, caption",
    "statement": "NLVR2's JSON lines, or JSONL of images, statement, label",
}
# Formats of JSON objects by their list of objects.
LISTS: dict[str, DataFormat] = {
    "questions": "vqav2",
    "images": "karpathy",
    "annotations": "annotations",
}


@overload
def load_task_data(
    task: Literal["question", "caption", "retrieval"],
    path: Path,
    images: Path | None = None,
    split: KarpathySplit | None = None,
    follow_links: bool = False,
) -> Records[Example]: ...
@overload
def load_task_data(
    task: Literal["statement"],
    path: Path,
    images: Path | None = None,
    split: KarpathySplit | None = None,
    follow_links: bool = False,
) -> Records[PairExample]: ...
def load_task_data(
    task: DataTask,
    path: Path,
    images: Path | None = None,
    split: KarpathySplit | None = None,
    follow_links: bool = False,
) -> Records[Example] | Records[PairExample]:
    """Load the examples of a file for a task. Files are read and checked at once, images opened later.

    Args:
        task: the task; captions and retrieval read the same files.
        path: LLaVA-Instruct JSON, VQAv2's questions (next to their annotations), Karpathy's JSON, NLVR2, or
            JSONL.
        images: the folder that image names are relative to; by default that of ``path``.
        split: only for files with splits of their own (``has_splits``), and required there.
        follow_links: also read images through links that lead out of that folder.

    Raises:
        CompExportError: names the file, the line or record, and the remedy; or the format of a file for
            another task.
    """
    file_format = data_format(path)
    lines = file_format == "lines"
    if file_format not in READ_BY[task] or (lines and task not in tasks_of(path)):
        remedy = WANTED[task] if file_format != "annotations" else "the file of the questions"
        name = NAMES[file_format]
        if lines and task != "statement":
            name = "JSONL of captions" if task == "question" else "JSONL of questions"
        raise CompExportError(f"{path} is {name}, not data for a {task} task: give {remedy}")
    folder = replace(image_folder(path, images), follow_links=follow_links)
    if file_format == "karpathy":
        if split is None:
            raise CompExportError(f"{path} has splits: choose train, validation or test")
        return load_karpathy(path, folder, split)
    if split is not None:
        raise CompExportError(f"{path} has no splits: leave out {split!r}")
    if file_format == "statements":
        return load_nlvr2(path, folder)
    if file_format == "conversations":
        return load_conversations(path, folder)
    if file_format == "vqav2":
        return load_vqav2(path, None, folder)
    return (load_questions if task == "question" else load_captions)(path, folder)


def tasks_of(path: Path) -> tuple[DataTask, ...]:
    """Return the tasks that a file has examples of, by its format and, in JSONL, its first line."""
    file_format = data_format(path)
    tasks = tuple(task for task, formats in READ_BY.items() if file_format in formats)
    if file_format != "lines":
        return tasks
    first = _first(path)
    key = {"question": "question", "caption": "caption", "retrieval": "caption"}
    return tuple(task for task in tasks if key[task] in first) or tasks


def has_splits(path: Path) -> bool:
    """Whether a file has splits for training, validation and test."""
    return data_format(path) == "karpathy"


def data_format(path: Path) -> DataFormat:
    """Return the format of a data file, by its first line or, if that is no JSON, by the whole.

    Raises:
        CompExportError: the file cannot be read, is empty, or has an unknown format.
    """
    first = _first(path)
    if isinstance(first, list):
        return "conversations"
    if isinstance(first, dict):
        if "identifier" in first or "statement" in first:
            return "statements"
        for key, of in LISTS.items():
            if _objects(first.get(key)):
                return of
        if "images" in first:
            return "statements"  # names of pictures
        if "image" in first:
            return "lines"
    formats = "; ".join(dict.fromkeys(WANTED.values()))
    raise CompExportError(f"{path}: unknown kind of data: give {formats}")


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _first(path: Path) -> Any:
    text = read_text(path).strip()
    if not text:
        raise CompExportError(f"{path} is empty: give at least one example")
    try:
        try:
            return json.loads(text.partition("\n")[0])
        except ValueError:
            return json.loads(text)  # one JSON value over several lines
    except RecursionError as error:
        raise CompExportError(
            f"{path} is nested deeper than {MAX_DEPTH} levels: fix that place"
        ) from error
    except ValueError as error:
        raise CompExportError(
            f"{path} is neither JSON nor an object a line ({error}): fix that place"
        ) from error
