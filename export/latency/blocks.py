"""The interface of a family to profiling: graphs that differ by blocks, and the surfaces of their times."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from comp.checkpoints.shapes import Stack
from comp.flops.block import block_weights
from comp.latency.table import DenseBlock, Surface
from comp.plan import BlockPlan, DropPlan, Part, PruningPlan, Workload
from export.graph.builder import GraphBuilder, Target
from export.latency.grid import Axes
from export.latency.timings import Feeds, Pair, Readings

METHOD = "profile"  # of the plans for measured graphs
MOST_BYTES = 2**30  # of weights in the blocks measured together
LEAST_BLOCKS = 2
STATES = 0.5  # spread of random states; times do not depend on it


class Blocks(Protocol):
    """A dense model that can be cut in many ways.

    Attributes:
        family, checkpoint: of the model.
        target: the graphs' target.
        text_tokens: length of the longest measured text.
        seed: for inputs and plans.
        image_tokens, tower_length: of one image, as in ``LatencyTable``.
    """

    @property
    def family(self) -> str: ...
    @property
    def checkpoint(self) -> Path: ...
    @property
    def target(self) -> Target: ...
    @property
    def text_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def image_tokens(self) -> int: ...
    @property
    def tower_length(self) -> int: ...

    @property
    def axes(self) -> dict[Part, Axes]:
        """The measured points of both parts."""
        ...

    def dense_blocks(self) -> tuple[DenseBlock, ...]:
        """The blocks that pruning may cut, as the adapter lists them."""
        ...

    def pairs(self) -> Iterator[Pair]:
        """All measurements, in order."""
        ...

    def surfaces(self, readings: Readings) -> tuple[Surface, ...]:
        """Compute the surfaces from the readings of all pairs."""
        ...

    def cut(
        self, sizes: dict[Part, list[tuple[int, int]]], drops: tuple[DropPlan, ...] = ()
    ) -> PruningPlan:
        """The plan that keeps the first heads and channels of each block, in these numbers."""
        ...

    def drops(self, share: Callable[[], float]) -> tuple[DropPlan, ...]:
        """The drops of CoMP for such a model; ``share`` is called for each keep ratio."""
        ...

    def whole_graphs(self, plan: PruningPlan | None) -> tuple[GraphBuilder, ...]:
        """The graphs of one request as `onnx` builds them, cut by a plan."""
        ...

    def whole_feeds(self, plan: PruningPlan | None, on: Workload) -> tuple[Feeds, ...]:
        """Inputs of these graphs for one request."""
        ...


def name_of(part: Part, heads: int, channels: int) -> str:
    """The name of readings of blocks of a size."""
    return f"{part} {heads} heads, {channels} channels"


def drop_name(part: Part, heads: int) -> str:
    """The name of readings of drop places."""
    return f"{part} {heads} heads, dropping"


def fixed_name(part: Part) -> str:
    """The name of readings of everything before and after the blocks."""
    return f"{part} without blocks"


def blocks_together(stack: Stack, target: Target) -> int:
    """Number of blocks of a stack measured together: all of them, or as many as fit."""
    fit = MOST_BYTES // (block_weights(stack, stack.blocks[0]) * target.numpy.itemsize)
    return min(len(stack.blocks), max(LEAST_BLOCKS, fit))


def first_of_each(
    blocks: Iterable[DenseBlock], sizes: dict[Part, list[tuple[int, int]]]
) -> tuple[BlockPlan, ...]:
    """Plans that keep the first heads and channels of each block, in these numbers."""
    dense = {(block.part, block.index): block for block in blocks}
    return tuple(
        BlockPlan(
            part=part,
            index=index,
            num_attention_heads=dense[part, index].heads * dense[part, index].group_size,
            num_key_value_heads=dense[part, index].heads,
            intermediate_size=dense[part, index].channels,
            kept_key_value_heads=tuple(range(heads)),
            kept_channels=tuple(range(channels)),
        )
        for part, left in sizes.items()
        for index, (heads, channels) in enumerate(left)
    )


def sizes_measured(axes: Axes) -> list[tuple[int, int]]:
    """Every number of heads with the narrowest FFN, and every other FFN width with one head."""
    narrow, one = axes.channels[0], axes.heads[0]
    return [
        *((heads, narrow) for heads in axes.heads),
        *((one, channels) for channels in axes.channels[1:]),
    ]
