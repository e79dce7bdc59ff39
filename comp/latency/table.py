"""Latency table: milliseconds of a model's blocks, measured once on a machine, for pruning.

``comp-export profile`` measures and writes it; reading needs no runtime. A table consists of grids of
milliseconds over tokens, heads and channels, with interpolation between their points.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from comp.errors import CompExportError
from comp.latency.request import Request, measured_families, request_of
from comp.plan import Part, Place, Workload
from comp.utils.files import write_text
from comp.utils.versioned_json import read_versioned, validated

if TYPE_CHECKING:
    from comp.checkpoints.shapes import Stack
    from comp.masks import BlockShape, StructureCounts

TABLE_VERSION: Final = 1
MEASURE_AGAIN = "measure it again with `comp-export profile --model {model} --force`"

Where = Literal["vision", "embedding", "language"]
Kind = Literal["fixed", "attention", "ffn", "last", "drop"]
NOTHING = (0,)  # the only point of an axis that a kind does not depend on


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Surface(_Frozen):
    """Milliseconds of one kind of block of one part, over a grid of three axes.

    Interpolation is multilinear. Below the first point of an axis the time is constant, above the last one it
    is proportional. Times never fall along an axis, so that fewer tokens, heads or channels never take
    longer.
    """

    part: Where
    kind: Kind
    tokens: tuple[int, ...] = Field(min_length=1, description="that enter")
    heads: tuple[int, ...] = Field(default=NOTHING, min_length=1, description="KV heads kept")
    channels: tuple[int, ...] = Field(default=NOTHING, min_length=1, description="FFN channels")
    ms: tuple[tuple[tuple[float, ...], ...], ...] = Field(
        description="by tokens, then heads, then channels"
    )

    @model_validator(mode="after")
    def _is_a_monotone_grid(self) -> "Surface":
        name = f"{self.part} {self.kind}"
        for axis in (self.tokens, self.heads, self.channels):
            if axis[0] < 0 or any(a >= b for a, b in pairwise(axis)):
                raise ValueError(f"{name}: the points {axis} do not ascend")
        rows = [row for plane in self.ms for row in plane]
        whole = (
            len(self.ms) == len(self.tokens)
            and all(len(plane) == len(self.heads) for plane in self.ms)
            and all(len(row) == len(self.channels) for row in rows)
        )
        if not whole:
            raise ValueError(f"{name}: ms has not a time for each point of its axes")
        if not all(math.isfinite(ms) and ms >= 0 for row in rows for ms in row):
            raise ValueError(f"{name}: a time is negative or no number")
        if not is_monotone(self.ms):
            raise ValueError(f"{name}: times fall along an axis")
        return self

    def at(self, tokens: int, heads: int = 0, channels: int = 0) -> float:
        """Return the interpolated milliseconds at a point."""
        total = 0.0
        for i, a in _weights(self.tokens, tokens):
            for j, b in _weights(self.heads, heads):
                for k, c in _weights(self.channels, channels):
                    total += a * b * c * self.ms[i][j][k]
        return total


class Target(_Frozen):
    """Target of the measurement: the build options of the graphs, and their runtime."""

    flavour: str
    precision: str
    provider: str = Field(description="of ONNX Runtime")
    threads: int = Field(ge=1, description="of one operator; of a GPU it does not matter")


class Measuring(_Frozen):
    """Protocol: the median over rounds of the medians of ``repeats`` runs after ``warmup`` runs."""

    rounds: int
    warmup: int
    repeats: int
    seed: int


class DenseBlock(_Frozen):
    """Sizes of a block before pruning; a head is a KV head with its query heads."""

    part: Part
    index: int
    hidden_size: int
    heads: int
    group_size: int
    head_dim: int
    channels: int


class HeldOut(_Frozen):
    """Predicted and measured time of a whole model on which no surface was measured."""

    name: str
    image_tokens: int
    text_tokens: int
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_ms / self.measured_ms - 1


class LatencyTable(_Frozen):
    """Times of a model's blocks on one machine; see ``docs/reference/formats.md``."""

    version: Literal[1] = TABLE_VERSION
    family: str
    model: str
    blocks: tuple[DenseBlock, ...]
    image_tokens: int = Field(ge=0, description="that one image becomes in the language model")
    tower_length: int = Field(ge=0, description="that one image is in the vision tower")
    target: Target
    measuring: Measuring
    machine: dict[str, Any]
    versions: dict[str, str]
    surfaces: tuple[Surface, ...]
    held_out: tuple[HeldOut, ...] = ()

    @model_validator(mode="after")
    def _is_known(self) -> "LatencyTable":
        request = request_of(self.family)
        if request is None:
            raise ValueError(f"family {self.family!r}: known are {', '.join(measured_families())}")
        missing = [" ".join(key) for key in request.surfaces if key not in self._by_kind]
        if missing:
            raise ValueError(f"no surface {', '.join(missing)}")
        return self

    @property
    def request(self) -> Request:
        """The sum of times of blocks of the table's family."""
        found = request_of(self.family)
        assert found is not None
        return found

    @cached_property
    def _by_kind(self) -> dict[tuple[str, str], Surface]:
        return {(surface.part, surface.kind): surface for surface in self.surfaces}

    def ms(self, part: Where, kind: Kind, tokens: int, heads: int = 0, channels: int = 0) -> float:
        """Milliseconds of one block, interpolated: see ``Surface``."""
        return self._by_kind[part, kind].at(tokens, heads, channels)

    def of(self, part: Part) -> tuple[DenseBlock, ...]:
        """Return the blocks of a part, in order."""
        return tuple(block for block in self.blocks if block.part == part)

    def by_part(
        self,
        counts: "StructureCounts",
        shares: Mapping[Place, tuple[float, float]],
        on: Workload,
    ) -> dict[str, float]:
        """Milliseconds to the first token, by part.

        Args:
            counts: KV heads and channels left of each block; blocks without an entry are whole.
            shares: keep ratios of image and text tokens, by place.
            on: the prompt.
        """
        return self.request.by_part(self, counts, shares, on)

    def milliseconds(
        self,
        counts: "StructureCounts",
        shares: Mapping[Place, tuple[float, float]],
        on: Workload,
    ) -> float:
        """Total of ``by_part``: time to the first token, without preparing the image."""
        return sum(self.by_part(counts, shares, on).values())

    def check_fits(self, family: str, blocks: Iterable[DenseBlock], where: str) -> None:
        """Refuse a table of another model.

        Raises:
            CompExportError: names the first difference.
        """
        remedy = "measure this one with `comp-export profile`, or pass another --latency-table"
        if family != self.family:
            raise CompExportError(
                f"{where} is of a {self.family}, the model is a {family}: {remedy}"
            )
        mine = {(block.part, block.index): block for block in self.blocks}
        for block in blocks:
            recorded = mine.pop((block.part, block.index), None)
            if recorded != block:
                raise CompExportError(
                    f"{where} is of another model ({self.model}): {block.part} block {block.index} is "
                    f"{_words(block)}, in the table {_words(recorded)}; {remedy}"
                )
        if mine:
            part, index = next(iter(mine))
            raise CompExportError(
                f"{where} is of another model ({self.model}): the model has no {part} block {index}; "
                f"{remedy}"
            )

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Read a table.

        Raises:
            CompExportError: it is missing, no table, damaged, or of another version.
        """
        absent = f"no latency table at {path}", "make one with `comp-export profile`"
        again = MEASURE_AGAIN.format(model="NAME")
        content = read_versioned(path, "a latency table", TABLE_VERSION, absent, again)
        again = MEASURE_AGAIN.format(model=content.get("model", "NAME"))
        return validated(cls, content, path, again)


def dense_block(block: "BlockShape") -> DenseBlock:
    """Return the sizes of a block as a table records them."""
    return DenseBlock(
        part=block.part,
        index=block.index,
        hidden_size=block.hidden_size,
        heads=block.num_key_value_heads,
        group_size=block.group_size,
        head_dim=block.head_dim,
        channels=block.intermediate_size,
    )


def dense_blocks(part: Part, stack: "Stack") -> tuple[DenseBlock, ...]:
    """Return the sizes of a part's blocks as a table records them."""
    return tuple(
        DenseBlock(
            part=part,
            index=index,
            hidden_size=stack.hidden_size,
            heads=block.heads,
            group_size=stack.group_size,
            head_dim=stack.head_dim,
            channels=block.channels,
        )
        for index, block in enumerate(stack.blocks)
    )


def is_monotone(ms: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether times never fall along any axis of a grid."""
    for i, plane in enumerate(ms):
        for j, row in enumerate(plane):
            for k, value in enumerate(row):
                before = [
                    *([ms[i - 1][j][k]] if i else []),
                    *([plane[j - 1][k]] if j else []),
                    *([row[k - 1]] if k else []),
                ]
                if any(value < other for other in before):
                    return False
    return True


def _weights(points: tuple[int, ...], x: int) -> tuple[tuple[int, float], ...]:
    """Return the neighbouring points of a value, with their weights."""
    if x <= points[0]:
        return ((0, 1.0),)
    last = len(points) - 1
    if x >= points[last]:
        return ((last, x / points[last] if points[last] else 1.0),)
    right = bisect_right(points, x)
    share = (x - points[right - 1]) / (points[right] - points[right - 1])
    return ((right - 1, 1 - share), (right, share))


def _words(block: DenseBlock | None) -> str:
    if block is None:
        return "none"
    return (
        f"{block.hidden_size} wide, {block.heads} heads of {block.head_dim} x {block.group_size}, "
        f"{block.channels} channels"
    )
