"""The examples to measure a run on: the part of its own data that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.data.example import AnyExample, CheckedExamples
from comp.data.formats.records import image_folder
from comp.data.loading import DataTask, has_splits, load_task_data
from comp.data.split import (
    PARTS,
    Item,
    Part,
    Split,
    Subset,
    fingerprint_of,
    fingerprint_of_file,
    items_of,
)
from comp.errors import CompExportError
from comp.runs import RunDirectory
from comp.utils.console import say

OwnData = Path | Sequence[AnyExample]
LOUD = "WARNING: "
SEEN = "the run was trained on these examples: the result says nothing about new ones"
CHOSEN = "the run was chosen by these examples: the result is too good for new ones"


@dataclass(frozen=True)
class DataOfRun:
    """Examples, their name for people, and what is wrong with measuring on them.

    Attributes:
        part: the part of the run's own data; ``None`` for other data.
        warning: ``None`` if the run has not seen the examples, as far as that is known.
    """

    examples: Sequence[Any]
    name: str
    part: Part | None = None
    warning: str | None = None

    def tell(self) -> "DataOfRun":
        """Print the warning on stderr."""
        if self.warning is not None:
            say(f"{LOUD}{self.warning}")
        return self

    @property
    def source(self) -> dict[str, Any]:
        """The entry of a report."""
        facts = {"part": self.part, "warning": self.warning}
        return {"name": self.name} | {key: value for key, value in facts.items() if value}


def split_of(run: RunDirectory) -> Split | None:
    """Return the split of a run's own data; ``None`` without own data, and of earlier runs.

    Raises:
        CompExportError: the file is damaged.
    """
    return Split.load(run.split) if run.split.is_file() else None


def data_of_run(
    run: RunDirectory,
    task: DataTask,
    data: OwnData | None = None,
    images: Path | None = None,
    follow_links: bool = False,
    part: Part = "test",
) -> DataOfRun | None:
    """Choose the examples to measure a run on.

    Args:
        run: the run.
        task: task of its model.
        data: a file, or examples (``given_data``); ``None``: what the run was pruned on.
        images, follow_links: of a file; without ``data`` they replace those of the run.
        part: a part of the run's own data, or of a file with splits.

    Returns:
        The examples; ``None`` without ``data`` for a run that was not pruned on own data, or is of an earlier
        release.

    Raises:
        CompExportError: the run's data is missing or has changed, or the data cannot be read.
    """
    if data is not None:
        return given_data(run, task, data, images, follow_links, part)
    split = split_of(run)
    return None if split is None else _own(split, run, task, images, follow_links, part)


def given_data(
    run: RunDirectory,
    task: DataTask,
    data: OwnData,
    images: Path | None = None,
    follow_links: bool = False,
    part: Part = "test",
) -> DataOfRun:
    """Load the examples that a user gives for a run.

    If they are what the run was pruned on, at any place, only ``part`` of them is used. Other data is used
    whole; if it has splits, the split of that name.

    Raises:
        CompExportError: the data cannot be read.
    """
    split = split_of(run)
    if not isinstance(data, Path):
        return _given(split, CheckedExamples.of(task, data), part)
    if has_splits(data):
        return _with_splits(split, run, task, data, images, follow_links, part)
    loaded = load_task_data(task, data, images, follow_links=follow_links)
    if split is None:
        return DataOfRun(loaded, data.name, None, SEEN if _named_by(run, data) else None)
    items = items_of(loaded, image_folder(data, images).path)
    if split.by == "picture" and fingerprint_of(items) == split.fingerprint:
        say(f"{data} is what the run was pruned on: only its {part} part is used")
        return _part(split, loaded, data.name, part)
    return DataOfRun(loaded, data.name, None, _shared(split, task, items))


def _own(
    split: Split,
    run: RunDirectory,
    task: DataTask,
    images: Path | None,
    follow_links: bool,
    part: Part,
) -> DataOfRun:
    if split.data is None:
        raise CompExportError(
            f"{run.path} was pruned on examples that Python gave: give them again as data, or a file with "
            "--data"
        )
    path = Path(split.data)
    if not path.is_file():
        raise CompExportError(
            f"{path}, which {run.path.name} was pruned on, is gone: say where it is with --data and --images"
        )
    folder = images if images is not None or split.images is None else Path(split.images)
    links = follow_links or split.follow_links
    if split.by == "file":
        if fingerprint_of_file(path) != split.fingerprint:
            raise _changed(path, run)
        loaded = load_task_data(task, path, folder, part, links)
        return DataOfRun(loaded, f"{path.name}, {part} split", part, _seen(part))
    examples = load_task_data(task, path, folder, follow_links=links)
    if fingerprint_of(items_of(examples, image_folder(path, folder).path)) != split.fingerprint:
        raise _changed(path, run)
    return _part(split, examples, path.name, part)


def _given(split: Split | None, examples: Sequence[AnyExample], part: Part) -> DataOfRun:
    name = f"{len(examples)} examples"
    if split is None or split.data is not None or len(examples) != sum(split.examples.values()):
        return DataOfRun(examples, name)
    if fingerprint_of(items_of(examples)) != split.fingerprint:
        return DataOfRun(examples, name)
    return _part(split, examples, name, part)


def _with_splits(
    split: Split | None,
    run: RunDirectory,
    task: DataTask,
    path: Path,
    images: Path | None,
    follow_links: bool,
    part: Part,
) -> DataOfRun:
    loaded = load_task_data(task, path, images, part, follow_links)
    own = _named_by(run, path)
    if split is not None and split.by == "file":
        own = fingerprint_of_file(path) == split.fingerprint
    warning = _seen(part) if own else None
    return DataOfRun(loaded, f"{path.name}, {part} split", part if own else None, warning)


def _part(split: Split, examples: Sequence[Any], name: str, part: Part) -> DataOfRun:
    chosen = Subset(examples, split.indices(part))
    return DataOfRun(chosen, f"{name}, {part} part", part, _seen(part))


def _seen(part: Part) -> str | None:
    return {"train": SEEN, "validation": CHOSEN, "test": None}[part]


def _named_by(run: RunDirectory, path: Path) -> bool:
    """Whether the record of a run of an earlier release names a file as its data."""
    request = run.read_record().get("request") if run.record.is_file() else None
    named = request.get("data") if isinstance(request, dict) else None
    return isinstance(named, str) and Path(named).resolve() == path.resolve()


def _shared(split: Split, task: DataTask, items: Sequence[Item]) -> str | None:
    """Warn of other data about pictures that the run was trained on, if its own data is still there."""
    if split.data is None or not Path(split.data).is_file():
        return None
    try:
        seen = _trained_pictures(split, task, Path(split.data))
    except CompExportError:  # it cannot be read any more: nothing to compare with
        return None
    shared = sum(not seen.isdisjoint(item.pictures) for item in items)
    if not shared:
        return None
    return (
        f"{shared:,} of these {len(items):,} examples are about pictures that the run was trained on: the "
        "result is too good for new ones. Without --data the test part of the run's own data is measured"
    )


def _trained_pictures(split: Split, task: DataTask, path: Path) -> set[str]:
    images = None if split.images is None else Path(split.images)
    items: list[Item] = []
    if split.by == "file":
        for part in PARTS[:2]:
            items += items_of(load_task_data(task, path, images, part, split.follow_links))
        return {picture for item in items for picture in item.pictures}
    items = items_of(load_task_data(task, path, images, follow_links=split.follow_links))
    tested = {*split.test}
    return {p for index, item in enumerate(items) if index not in tested for p in item.pictures}


def _changed(path: Path, run: RunDirectory) -> CompExportError:
    return CompExportError(
        f"{path} has changed since {run.path.name} was pruned on it, so its test part is lost: restore it, "
        "name other data with --data, or prune again"
    )
