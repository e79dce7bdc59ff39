"""Load the data of a pruning run, and split a user's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comp.adapter import FamilyAdapter
from comp.data.example import AnyExample, CheckedExamples
from comp.data.formats.karpathy import images_in
from comp.data.formats.records import image_folder
from comp.data.loading import has_splits, load_task_data
from comp.data.split import (
    SEED,
    Part,
    Parts,
    Split,
    fingerprint_of_file,
    items_of,
    split_items,
    warnings_of,
)
from comp.errors import CompExportError
from comp.pipeline.request import PruneRequest
from comp.runs import RunDirectory
from comp.training.data import PruningData, embedded_data, own_data, split_data
from comp.utils.compute import Compute
from comp.utils.console import say
from comp.utils.json_files import read_object
from comp.utils.progress import Progress

FINGERPRINT = "fingerprint"  # key of request.json: that of the run's own data


def data_of(
    request: PruneRequest,
    adapter: FamilyAdapter,
    compute: Compute,
    examples: Sequence[AnyExample] | None,
    progress: Progress,
) -> tuple[PruningData, Split | None]:
    """Return the data of a run, and the split of a user's own; print its counts and warnings on stderr.

    Args:
        request: names the file, if there is one.
        adapter: collates the examples of its task.
        compute: shares batches between processes.
        examples: own data, instead of a file.
        progress: shows the reading of pictures that Python gives.

    Raises:
        CompExportError: the data cannot be read, is for another task, or too small.
    """
    if examples is None and request.data is None:
        return embedded_data(adapter, compute, request.sizes), None
    data, split = (
        _of_file(request, adapter, compute)
        if examples is None
        else _of_python(request, adapter, compute, examples, progress)
    )
    if compute.is_main:
        if not progress.quiet:
            say(split.sentence)
        for warning in warnings_of(split):
            say(f"warning: {warning}")
    return data, split


def check_same_data(run: RunDirectory, split: Split) -> None:
    """Refuse to resume a run on other data, or on data that an earlier release split differently.

    Raises:
        CompExportError: the fingerprint of the data is not that of the interrupted run.
    """
    if read_object(run.request, "start again with --force").get(FINGERPRINT) != split.fingerprint:
        raise CompExportError(
            f"{split.data or 'the data'} has changed since {run.path} was started: restore it, or start "
            "again with --force"
        )


def _of_file(
    request: PruneRequest, adapter: FamilyAdapter, compute: Compute
) -> tuple[PruningData, Split]:
    path, images = Path(str(request.data)), None if request.images is None else Path(request.images)
    links = request.follow_links
    place: dict[str, Any] = {
        "data": str(path.resolve()),
        "images": None if images is None else str(images.resolve()),
        "follow_links": links,
    }
    if has_splits(path):
        train = load_task_data(adapter.task, path, images, "train", links)
        validation = load_task_data(adapter.task, path, images, "validation", links)
        counts: dict[Part, int] = {"train": len(train), "validation": len(validation)}
        counts["test"] = images_in(path, "test")
        fingerprint = fingerprint_of_file(path)
        split = Split(by="file", fingerprint=fingerprint, examples=counts, **place)
        return split_data(adapter, compute, request.sizes, train, validation), split
    loaded = load_task_data(adapter.task, path, images, follow_links=links)
    items = items_of(loaded, image_folder(path, images).path)
    parts = split_items(items)
    split = Split.of(items, parts, SEED, **place)
    return own_data(adapter, compute, request.sizes, loaded, parts), split


def _of_python(
    request: PruneRequest,
    adapter: FamilyAdapter,
    compute: Compute,
    examples: Sequence[AnyExample],
    progress: Progress,
) -> tuple[PruningData, Split]:
    examples = CheckedExamples.of(adapter.task, examples)
    with progress.task("reading pictures", len(examples)) as task:
        items = items_of(examples, advance=task.at)
    parts: Parts = split_items(items)
    split = Split.of(items, parts, SEED)
    return own_data(adapter, compute, request.sizes, examples, parts), split
