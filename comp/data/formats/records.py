"""Records that the readers of data files share: checked at once, with images opened on access."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Protocol, TypeVar, overload

from PIL import Image

from comp.data.example import Example, PairExample
from comp.data.images import read_image
from comp.errors import CompExportError
from comp.utils import json_files
from comp.utils.json_files import parse_json

SHOWN = 80  # characters of a name in an error
MAX_BYTES = 8 * 2**30  # of a data file

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class Record(Protocol[E_co]):
    """Interface of the record of one example."""

    def example(self) -> E_co:
        """Return the example with its images.

        Raises:
            CompExportError: an image cannot be read.
        """


@dataclass(frozen=True)
class ImageRecord:
    """One question about one image file; ``where`` is its location in the data file, for errors."""

    image: Path
    question: str
    answer: str
    kind: str
    where: str
    answers: tuple[str, ...] = ()

    def example(self) -> Example:
        image = _opened(self.image, self.where)
        return Example(image, self.question, self.answer, self.kind, self.answers)


@dataclass(frozen=True)
class PairRecord:
    """One statement about two image files; ``where`` is its location in the data file, for errors."""

    images: tuple[Path, Path]
    statement: str
    answer: bool
    kind: str
    where: str

    def example(self) -> PairExample:
        first, second = (_opened(image, self.where) for image in self.images)
        return PairExample((first, second), self.statement, self.answer, self.kind)


class Records(Sequence[E], Generic[E]):
    """A sequence of examples from records; images are opened (and may be refused) on access."""

    def __init__(self, records: Sequence[Record[E]]) -> None:
        self.records = tuple(records)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> "Records[E]": ...
    def __getitem__(self, index: int | slice) -> "E | Records[E]":
        if isinstance(index, slice):
            return Records(self.records[index])
        return self.records[index].example()


def _opened(path: Path, where: str) -> Image.Image:
    try:
        return read_image(path)
    except CompExportError as error:
        raise CompExportError(f"{where}: {error}") from error


@dataclass(frozen=True)
class ImageFolder:
    """The resolved folder that image names of a data file are relative to.

    Attributes:
        follow_links: allow links that lead out of the folder. Names may not leave it either way.
    """

    path: Path
    follow_links: bool = False


def image_folder(path: Path, images: "Path | ImageFolder | None") -> ImageFolder:
    """Return the given folder, by default the data file's own.

    Raises:
        CompExportError: there is no such folder.
    """
    if isinstance(images, ImageFolder):
        return images
    folder = (path.parent if images is None else images).resolve()
    if not folder.is_dir():
        raise CompExportError(
            f"no image folder {folder}: pass the folder that image names start in (--images)"
        )
    return ImageFolder(folder)


def image_file(name: str, images: ImageFolder, where: str, subfolder: str = "") -> Path:
    """Return an image's file. Names may not leave the folder, except by links if these are followed.

    Otherwise an untrusted data file could name any file of this machine.

    Args:
        name: name in the data file.
        images: the folder that names are relative to.
        where: location in the data file, for errors.
        subfolder: folder in ``images``, searched for files that are not directly in it.

    Raises:
        CompExportError: there is no such file, or it is outside the folder.
    """
    folder, inside = images.path, f"{subfolder}/{name}"
    try:
        relative = inside if subfolder and not (folder / name).is_file() else name
        named = Path(os.path.normpath(folder / relative))
        path = (folder / relative).resolve()
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # too long, or with NUL
        raise CompExportError(
            f"{where}: image {name[:SHOWN]!r} is no name that a file can have: name a file in {folder}"
        ) from error
    if PurePosixPath(relative).is_absolute() or not named.is_relative_to(folder):
        raise CompExportError(
            f"{where}: image {name!r} leads out of the image folder {folder}: name a file inside it"
        )
    if not images.follow_links and not path.is_relative_to(folder):
        raise CompExportError(
            f"{where}: image {name!r} leads out of the image folder {folder}, by a link: pass --follow-links "
            "if these links are your own, or name a file inside it"
        )
    if not is_file:
        searched = f"{folder} or its {subfolder}" if subfolder else str(folder)
        raise CompExportError(
            f"{where}: no image {name!r} in {searched}: pass the folder that image names start in"
        )
    return named if images.follow_links else path


def read_text(path: Path) -> str:
    """Read a data file's text, in UTF-8, with or without a byte order mark."""
    return json_files.read_text(path, "name a data file", MAX_BYTES)


def read_list(path: Path, key: str, format_name: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the list under ``key`` of a JSON object, and the object."""
    content = parse_json(read_text(path), str(path), "download it again")
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise CompExportError(f"{path} has no list {key!r}, as {format_name} has it")
    return entries, content


def json_lines(path: Path, keys: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a JSONL file, each with its location."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        entry = parse_json(line, where, "write one whole object a line")
        if not isinstance(entry, dict):
            raise CompExportError(f"{where} is no object: write {{{keys}}} on each line")
        yield entry, where


def text_of(entry: Mapping[str, Any], key: str, where: str) -> str:
    """Return the stripped text under a key, which must exist and not be empty."""
    value = entry.get(key)
    if not isinstance(value, str):
        raise CompExportError(f"{where}: {key!r} is {value!r}: give it as text")
    return not_empty(value, key, where)


def not_empty(text: str, key: str, where: str) -> str:
    """Return the stripped text, which must not be empty."""
    if not text.strip():
        raise CompExportError(f"{where}: {key!r} is empty: give it as text")
    return text.strip()
