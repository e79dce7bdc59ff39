"""Read statements about two images, true or false, from NLVR2's files or plain JSONL.

NLVR2 (``dev.json``, ``test1.json``, ``train.json``; https://github.com/lil-lab/nlvr) has an object on each
line: ``{"identifier": "dev-850-0-0", "sentence": ..., "label": "True", ...}``. Its images are named by the
identifier without its last part, the number of the sentence: ``dev-850-0-img0.png`` is the left one,
``dev-850-0-img1.png`` the right one. Those of training are in folders numbered by ``directory``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comp.data.example import PairExample
from comp.data.formats.records import (
    ImageFolder,
    PairRecord,
    Records,
    image_file,
    image_folder,
    json_lines,
    text_of,
)
from comp.errors import CompExportError

KEYS = "identifier, sentence, label; or images, statement, label"
LABELS = {"true": True, "false": False}


def load_nlvr2(path: Path, images: Path | ImageFolder | None = None) -> Records[PairExample]:
    """Load statements in NLVR2's format, or lines ``{"images": [a, b], "statement": text, "label": true}``.

    Args:
        path: the file.
        images: the folder with the images, or with the folders ``directory``; by default that of ``path``.

    Raises:
        CompExportError: names the file, the line, and the remedy.
    """
    folder = image_folder(path, images)
    records = [_record(entry, folder, where) for entry, where in json_lines(path, KEYS)]
    if not records:
        raise CompExportError(f"{path} holds no statement: write {{{KEYS}}} on each line")
    return Records(records)


def _record(entry: Mapping[str, Any], folder: ImageFolder, where: str) -> PairRecord:
    own = "images" in entry
    names = _own_names(entry["images"], where) if own else _names(entry, where)
    # Only in NLVR2's format: in a user's own, names are complete paths.
    directory = "" if own else str(entry.get("directory", ""))
    return PairRecord(
        images=(
            image_file(names[0], folder, where, directory),
            image_file(names[1], folder, where, directory),
        ),
        statement=text_of(entry, "statement" if own else "sentence", where),
        answer=_label(entry.get("label"), where),
        kind="statement",
        where=where,
    )


def _names(entry: Mapping[str, Any], where: str) -> tuple[str, str]:
    identifier = text_of(entry, "identifier", where)
    parts = identifier.split("-")
    if len(parts) != 4:
        raise CompExportError(
            f"{where}: identifier {identifier!r} is not split-set-pair-sentence, as dev-850-0-0 is"
        )
    pair = "-".join(parts[:-1])
    return f"{pair}-img0.png", f"{pair}-img1.png"


def _own_names(images: object, where: str) -> tuple[str, str]:
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise CompExportError(f"{where}: 'images' is {images!r}: give the names of two")
    if len(images) != 2:
        raise CompExportError(f"{where}: {len(images)} images: a statement is about two")
    return images[0], images[1]


def _label(label: object, where: str) -> bool:
    if isinstance(label, bool):
        return label
    if isinstance(label, str) and label.strip().lower() in LABELS:
        return LABELS[label.strip().lower()]
    raise CompExportError(f"{where}: label is {label!r}: write true or false")
