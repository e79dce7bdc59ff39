"""Split a user's examples once into train, validation and test, by picture; written into the run.

All examples about one picture are in one part, and so are statements that share a picture with each other.
The parts depend on the examples alone, not on their order in the file or the place of the pictures, so that
runs of any method, rate and seed on the same data are tested on the same examples.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from comp.data.example import AnyExample, PairExample
from comp.data.formats.records import ImageRecord, PairRecord, Records
from comp.errors import CompExportError
from comp.utils.files import write_text
from comp.utils.versioned_json import read_versioned, validated

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
SPLIT_VERSION = 1
SEED = 0  # the same for all runs, whatever their --seed
HELD_OUT = 10  # every part that is held out has one of so many examples
LEAST_EXAMPLES = 40
LEAST_PICTURES = 3
FEW = 100  # test examples: with fewer, accuracy is uncertain by more than 10 points
HALF_WIDTH = 0.98  # of a 95 % interval at an accuracy of one half, times the root of the number
BLOCK = 2**20  # bytes read at a time
AGAIN = "make the run again with `comp-export prune --force`"


@dataclass(frozen=True)
class Item:
    """Identity of an example.

    Attributes:
        pictures: identity of each picture: its resolved path, or a digest of its pixels.
        names: the same without the place of the folder: names relative to it, or digests.
        words: question and answer, or statement and label.
    """

    pictures: tuple[str, ...]
    names: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Parts:
    """A split by picture, as indices of examples in the order in which they are used."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


class Split(BaseModel):
    """Which examples of a run's data train, validate and test: ``split.json`` (docs/formats.md).

    Attributes:
        by: ``picture``, or ``file`` for a file with splits of its own, which has no indices.
        data, images: absolute paths of the file and of its pictures' folder; null for examples of Python.
        fingerprint: digest of the examples in order, or of the bytes of a file with splits.
        examples: number of examples in each part.
        pictures: number of pictures in each part, if the split is by picture.
        validation, test: indices of examples, in the order in which they are used; the others train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    by: Literal["picture", "file"]
    seed: int | None = None
    data: str | None = None
    images: str | None = None
    follow_links: bool = False
    fingerprint: str
    examples: dict[Part, int]
    pictures: dict[Part, int] | None = None
    validation: tuple[int, ...] = Field(default=(), repr=False)
    test: tuple[int, ...] = Field(default=(), repr=False)

    @model_validator(mode="after")
    def _check_indices(self) -> "Split":
        held_out, total = (*self.validation, *self.test), sum(self.examples.values())
        if set(self.examples) != set(PARTS) or min(self.examples.values()) < 0:
            raise ValueError(f"examples are counted for {', '.join(PARTS)}")
        if self.by == "file":
            return self
        counts = self.examples["validation"], self.examples["test"]
        if counts != (len(self.validation), len(self.test)):
            raise ValueError("the numbers of indices are not those of examples")
        if len(set(held_out)) < len(held_out) or not all(0 <= each < total for each in held_out):
            raise ValueError(f"an index occurs twice, or is not from 0 to {total - 1}")
        return self

    @classmethod
    def of(cls, items: Sequence[Item], parts: Parts, seed: int, **place: Any) -> "Split":
        """Return the record of a split by picture.

        Args:
            items, parts: the examples, and their split.
            seed: seed of the split.
            place: ``data``, ``images`` and ``follow_links``, for a file.
        """
        by_name = dict(zip(PARTS, (parts.train, parts.validation, parts.test), strict=True))
        pictures = {
            part: len({name for index in indices for name in items[index].pictures})
            for part, indices in by_name.items()
        }
        return cls(
            by="picture",
            seed=seed,
            fingerprint=fingerprint_of(items),
            examples={part: len(indices) for part, indices in by_name.items()},
            pictures=pictures,
            validation=parts.validation,
            test=parts.test,
            **place,
        )

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read the file.

        Raises:
            CompExportError: it is missing, damaged or of another version.
        """
        absent = f"no split at {path}", AGAIN
        content = read_versioned(path, "a split", SPLIT_VERSION, absent, AGAIN)
        return validated(cls, content, path, AGAIN)

    def save(self, path: Path) -> None:
        """Write the file."""
        write_text(path, self.model_dump_json() + "\n")

    def indices(self, part: Part) -> Sequence[int]:
        """Indices of the examples of a part, if the split is by picture."""
        if part == "train":
            held_out = {*self.validation, *self.test}
            return [i for i in range(sum(self.examples.values())) if i not in held_out]
        return self.test if part == "test" else self.validation

    @property
    def sentence(self) -> str:
        """The counts in words."""

        def words(part: Part) -> str:
            of = "" if self.pictures is None else f" ({self.pictures[part]:,} pictures)"
            name = {"train": "train", "validation": "validate", "test": "test"}[part]
            return f"{self.examples[part]:,} examples{of} {name}"

        where = "its own splits" if self.by == "file" else "split by picture"
        return f"data: {where}: {', '.join(words(part) for part in PARTS)}"


@dataclass(frozen=True)
class Subset(Sequence[Any]):
    """Some examples of a sequence, each read when accessed."""

    examples: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self.examples, self.indices[index])
        return self.examples[self.indices[index]]


def items_of(
    examples: Sequence[AnyExample],
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Item]:
    """Return what each example is known by. Pictures of files are not opened.

    Args:
        examples: of a file, or any sequence; the pictures of the latter are read once, for their pixels.
        folder: the resolved folder of a file's pictures.
        advance: called after each example with the number of those read.
    """
    items = []
    records = examples.records if isinstance(examples, Records) else None
    for index in range(len(examples)):
        if records is None:
            items.append(_seen(examples[index]))
        else:
            items.append(_recorded(records[index], folder))
        advance(index + 1)
    return items


def _recorded(record: Any, folder: Path | None) -> Item:
    files: tuple[Path, ...]
    words: tuple[str, ...]
    if isinstance(record, PairRecord):
        files, words = record.images, (record.statement, str(record.answer))
    elif isinstance(record, ImageRecord):
        files, words = (record.image,), (record.question, record.answer)
    else:
        return _seen(record.example())
    names = tuple(
        file.relative_to(folder).as_posix()
        if folder is not None and file.is_relative_to(folder)
        else str(file)
        for file in files
    )
    return Item(tuple(str(file.resolve()) for file in files), names, words)


def _seen(example: AnyExample) -> Item:
    images: tuple[Image.Image, ...]
    words: tuple[str, ...]
    if isinstance(example, PairExample):
        images, words = example.images, (example.statement, str(example.answer))
    else:
        images, words = (example.image,), (example.question, example.answer)
    pixels = tuple(_digest((f"{image.mode} {image.size}", image.tobytes())) for image in images)
    return Item(pixels, pixels, words)


def fingerprint_of(items: Sequence[Item]) -> str:
    """Digest of examples in order: pictures' names and words. It says nothing of pictures' contents."""
    return _named(_digest(text for item in items for text in (*item.names, *item.words)))


def fingerprint_of_file(path: Path) -> str:
    """Digest of the bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return _named(digest.hexdigest())


def split_items(items: Sequence[Item], seed: int = SEED) -> Parts:
    """Split examples by picture: a tenth each for test and validation, the others for training.

    Groups of examples that share pictures are drawn in the order of a seeded digest of their names. A group
    larger than a tenth is drawn only if there is no smaller one. The examples of a part are in the order of
    another such digest, so that its first ones are drawn at random too.

    Raises:
        CompExportError: fewer than 40 examples, or fewer than three groups.
    """
    groups = _groups(items)
    check_size(len(items), len(groups))
    drawn = sorted(groups, key=lambda group: _drawn(items, group, seed))
    quota = max(1, len(items) // HELD_OUT)
    test, rest = _taken(drawn, quota, leave=2)
    validation, train = _taken(rest, quota, leave=1)

    def ordered(chosen: list[list[int]]) -> tuple[int, ...]:
        members = (index for group in chosen for index in group)
        return tuple(sorted(members, key=lambda index: _order(items[index], index, seed)))

    return Parts(ordered(train), ordered(validation), ordered(test))


def check_size(examples: int, pictures: int) -> None:
    """Refuse data that cannot be split.

    Raises:
        CompExportError: names the least number.
    """
    if examples < LEAST_EXAMPLES:
        raise CompExportError(
            f"{examples} examples are too few to train, validate and test on: give at least "
            f"{LEAST_EXAMPLES}, or leave out --data"
        )
    if pictures < LEAST_PICTURES:
        raise CompExportError(
            f"{examples} examples about {pictures} separate picture{'s' * (pictures != 1)} cannot be split "
            f"into train, validation and test: give examples about at least {LEAST_PICTURES} pictures, or "
            "leave out --data"
        )


def warnings_of(split: Split) -> list[str]:
    """Return what a user should know of a small split."""
    count = split.examples["test"]
    if count == 0:
        return [
            f"{split.data} has no test split: nothing is left to measure the run on with `eval`"
        ]
    warnings = []
    if count < FEW:
        points = round(100 * HALF_WIDTH / count**0.5)
        more = (
            f"; {FEW * HELD_OUT:,} examples in all would leave {FEW}"
            if split.by == "picture"
            else ""
        )
        warnings.append(
            f"only {count} examples test: an accuracy on them is uncertain by up to ±{points} points{more}"
        )
    if split.pictures is not None and min(split.pictures.values()) < HELD_OUT:
        fewest = min(PARTS, key=lambda part: (split.pictures or {})[part])
        warnings.append(
            f"the {fewest} part is about {split.pictures[fewest]} pictures only: what it says may not hold "
            "for others"
        )
    return warnings


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Indices of examples that share pictures, directly or by way of others."""
    parent: dict[str, str] = {}

    def root(picture: str) -> str:
        while parent.setdefault(picture, picture) != picture:
            parent[picture] = picture = parent[parent[picture]]
        return picture

    for item in items:
        first, *others = map(root, item.pictures)
        for other in others:
            parent[root(other)] = first = root(first)
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(root(item.pictures[0]), []).append(index)
    return list(groups.values())


def _taken(
    groups: list[list[int]], quota: int, leave: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Draw groups until they have ``quota`` examples, leaving at least ``leave`` groups."""
    taken: list[list[int]] = []
    rest: list[list[int]] = []
    count = 0
    for number, group in enumerate(groups):
        ahead = len(groups) - number - 1
        if count < quota and len(group) <= quota and len(rest) + ahead >= leave:
            taken.append(group)
            count += len(group)
        else:
            rest.append(group)
    if not taken:
        smallest = min(range(len(rest)), key=lambda place: (len(rest[place]), place))
        taken.append(rest.pop(smallest))
    return taken, rest


def _drawn(items: Sequence[Item], group: Iterable[int], seed: int) -> str:
    names = sorted({name for index in group for name in items[index].names})
    return _digest((f"split {seed}", *names))


def _order(item: Item, index: int, seed: int) -> tuple[str, int]:
    return _digest((f"order {seed}", *item.names, *item.words)), index


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def _named(digest: str) -> str:
    return f"sha256:{digest}"
