"""The interface of a family to profiling: graphs that differ by blocks, and the surfaces of their times."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from comp.checkpoints.locate import read_config
from comp.checkpoints.shapes import Stack
from comp.errors import CompExportError
from comp.flops.block import block_weights
from comp.latency.table import DenseBlock, Surface
from comp.plan import BlockPlan, DropPlan, Part, PruningPlan, Task, Workload
from comp.registry.families import family_of
from export.graph.builder import GraphBuilder, Target
from export.latency.grid import Axes
from export.latency.timings import Feeds, Pair, Readings
from export.weights.checkpoint import WeightSource

METHOD = "profile"  # of the plans for measured graphs
MOST_BYTES = 2**30  # of weights in the blocks measured together
LEAST_BLOCKS = 2
STATES = 0.5  # spread of random states; times do not depend on it


@dataclass(frozen=True)
class Blocks(ABC):
    """A dense model that can be cut in many ways.

    Attributes:
        family, task: of the model.
        checkpoint: of the model.
        shape: of the model, as the graphs are built from it.
        target: the graphs' target.
        text_tokens: length of the longest measured text.
        seed: seed of inputs and plans.
    """

    family: ClassVar[str]
    task: ClassVar[Task]
    checkpoint: Path
    shape: Any
    target: Target
    text_tokens: int
    seed: int = 0

    @property
    @abstractmethod
    def image_tokens(self) -> int:
        """Tokens of one image in the language part, as in ``LatencyTable``."""

    @property
    @abstractmethod
    def tower_length(self) -> int:
        """Tokens of one image in the vision tower, as in ``LatencyTable``."""

    @property
    @abstractmethod
    def axes(self) -> dict[Part, Axes]:
        """The measured points of both parts."""

    @abstractmethod
    def dense_blocks(self) -> tuple[DenseBlock, ...]:
        """The blocks that pruning may cut, as the adapter lists them."""

    @abstractmethod
    def stack(self, part: Part) -> Stack:
        """The blocks of a part that run."""

    @abstractmethod
    def macs(self, plan: PruningPlan | None, on: Workload) -> int:
        """Multiply-accumulates of one request, cut by a plan."""

    @abstractmethod
    def weights(self, plan: PruningPlan | None) -> WeightSource:
        """The model's weights, cut by a plan."""

    @abstractmethod
    def pairs(self) -> Iterator[Pair]:
        """All measurements, in order."""

    @abstractmethod
    def surfaces(self, readings: Readings) -> tuple[Surface, ...]:
        """Compute every surface that ``comp.latency.request`` reads from the readings of all pairs."""

    @abstractmethod
    def drops(self, share: Callable[[], float]) -> tuple[DropPlan, ...]:
        """The drops of CoMP for such a model; ``share`` is called for each keep ratio."""

    @abstractmethod
    def whole_graphs(self, plan: PruningPlan | None) -> tuple[GraphBuilder, ...]:
        """The graphs of one request as `onnx` builds them, cut by a plan."""

    @abstractmethod
    def whole_feeds(self, plan: PruningPlan | None, on: Workload) -> tuple[Feeds, ...]:
        """Inputs of these graphs for one request."""

    def cut(
        self, sizes: dict[Part, list[tuple[int, int]]], drops: tuple[DropPlan, ...] = ()
    ) -> PruningPlan:
        """The plan that keeps the first heads and channels of each block, in these numbers."""
        on = Workload(image_tokens=self.image_tokens, text_tokens=self.text_tokens)
        dense = self.macs(None, on)
        plan = PruningPlan(
            family=self.family,
            task=self.task,
            model=str(self.checkpoint),
            method=METHOD,
            rate=0.0,
            workload=on,
            macs_dense=dense,
            macs=dense,
            blocks=_first_of_each(self.dense_blocks(), sizes),
            drops=drops,
        )
        macs = self.macs(plan, on)
        return plan.model_copy(update={"macs": macs, "rate": 1 - macs / dense})

    def uniform(self, part: Part, heads: int, channels: int) -> tuple[Any, WeightSource]:
        """Shape and weights of the model with all blocks of a part cut to one size."""
        plan = self.cut({part: [(heads, channels)] * len(self.stack(part).blocks)})
        return self.shape.pruned(plan), self.weights(plan)

    def depth(self, part: Part) -> int:
        """Number of blocks measured together: all of the part, or as many as fit."""
        stack = self.stack(part)
        fit = MOST_BYTES // (block_weights(stack, stack.blocks[0]) * self.target.numpy.itemsize)
        return min(len(stack.blocks), max(LEAST_BLOCKS, fit))


def dense_config(checkpoint: Path) -> dict[str, Any]:
    """Read the configuration of a model that nothing was cut from.

    Raises:
        CompExportError: it is a slim one.
    """
    config = read_config(checkpoint)
    family = family_of(config.get("model_type"))
    if family is not None and family.is_slim(config.get("model_type")):
        raise CompExportError(
            f"{checkpoint} is compressed already: pass its dense model with --model"
        )
    return config


def name_of(part: Part, heads: int, channels: int) -> str:
    """The name of readings of blocks of a size."""
    return f"{part} {heads} heads, {channels} channels"


def drop_name(part: Part, heads: int) -> str:
    """The name of readings of drop places."""
    return f"{part} {heads} heads, dropping"


def fixed_name(part: Part) -> str:
    """The name of readings of everything before and after the blocks."""
    return f"{part} without blocks"


def _first_of_each(
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
