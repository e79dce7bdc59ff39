"""Profile a CLIP: the blocks of both towers from random states, and everything around them.

The graphs are of the towers that ``export.families.clip.graphs`` builds, with fewer blocks than the model
has, all of one size, with the model's own weights. The graphs of a pair differ by blocks, by drop places,
or by everything before and after the blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from comp.checkpoints.shapes import TextShape, TowerShape
from comp.errors import CompExportError
from comp.flops.token_drops import dropped_macs
from comp.latency.table import DenseBlock, Surface, dense_blocks
from comp.plan import DropPlan, Part, PruningPlan, Workload
from export.configs.clip import ClipShape, clip_of
from export.families.clip.artifact import clip_weights
from export.families.clip.graphs import text_model, tower_of, vision_model
from export.graph.builder import GraphBuilder, Target
from export.latency.blocks import (
    LEAST_BLOCKS,
    STATES,
    Blocks,
    dense_config,
    drop_name,
    fixed_name,
    name_of,
    sizes_measured,
)
from export.latency.grid import Axes, axes_of
from export.latency.surfaces import Tower, block_surfaces, end_surfaces, surface
from export.latency.timings import Feeds, Pair, Readings
from export.weights.checkpoint import WeightSource

PARTS: tuple[Tower, Tower] = ("vision", "language")


@dataclass(frozen=True)
class ClipBlocks(Blocks):
    """A dense CLIP."""

    family = "clip"
    task = "retrieval"
    shape: ClipShape

    @classmethod
    def of(
        cls, checkpoint: Path, target: Target, text_tokens: int | None, seed: int
    ) -> "ClipBlocks":
        """Read the model.

        Raises:
            CompExportError: it is not a dense CLIP, has too few blocks to measure their difference, or too
                few positions.
        """
        shape = clip_of(dense_config(checkpoint), str(checkpoint))
        vision, text = shape.sizes.vision, shape.sizes.text
        if min(len(vision.blocks), len(text.blocks)) < LEAST_BLOCKS:
            raise CompExportError(
                f"{checkpoint} has {len(vision.blocks)} blocks for images and {len(text.blocks)} for "
                f"texts: {LEAST_BLOCKS} of each are the fewest that can be measured"
            )
        text_tokens = text.positions if text_tokens is None else text_tokens
        if text_tokens > text.positions:
            raise CompExportError(
                f"--text-tokens {text_tokens}: the model has positions for {text.positions}"
            )
        return cls(checkpoint, shape, target, text_tokens, seed)

    @property
    def image_tokens(self) -> int:
        """Patches, and [CLS]."""
        return self.shape.sizes.vision.tokens

    @property
    def tower_length(self) -> int:
        """As ``image_tokens``: nothing else reads the image."""
        return self.image_tokens

    @property
    def axes(self) -> dict[Part, Axes]:
        return {
            part: axes_of(
                self.image_tokens if part == "vision" else self.text_tokens,
                self.stack(part).blocks[0].heads,
                self.stack(part).blocks[0].channels,
            )
            for part in PARTS
        }

    def dense_blocks(self) -> tuple[DenseBlock, ...]:
        """Blocks of the vision tower, then of the text model."""
        return tuple(block for part in PARTS for block in dense_blocks(part, self.stack(part)))

    def pairs(self) -> Iterator[Pair]:
        for part, axes in self.axes.items():
            yield self._around(part)
            for heads, channels in sizes_measured(axes):
                yield self._blocks(part, heads, channels)
            for heads in axes.heads:
                yield self._places(part, heads, axes.channels[0])

    def surfaces(self, readings: Readings) -> tuple[Surface, ...]:
        return tuple(
            each
            for part in PARTS
            for each in _surfaces(part, self.axes[part], self._lengths(part), readings)
        )

    def drops(self, share: Callable[[], float]) -> tuple[DropPlan, ...]:
        """Drops after every block but the last, of the tower's tokens."""
        return tuple(
            _drop(part, after, share())
            for part in PARTS
            for after in range(1, len(self.stack(part).blocks))
        )

    def macs(self, plan: PruningPlan | None, on: Workload) -> int:
        shape = self.shape if plan is None else self.shape.pruned(plan)
        return sum(dropped_macs(shape.sizes, on, shape.drops).values())

    def whole_graphs(self, plan: PruningPlan | None) -> tuple[GraphBuilder, ...]:
        """Both graphs as `onnx` builds them, cut by a plan."""
        shape = self.shape if plan is None else self.shape.pruned(plan)
        weights = self.weights(plan)
        return tuple(build(shape, weights, self.target) for build in (vision_model, text_model))

    def whole_feeds(self, plan: PruningPlan | None, on: Workload) -> tuple[Feeds, ...]:
        """One image and one text."""
        del plan  # inputs have the same shape with and without it
        return self._input("vision", on.image_tokens), self._input("language", on.text_tokens)

    def stack(self, part: Part) -> TowerShape | TextShape:
        return self.shape.sizes.vision if part == "vision" else self.shape.sizes.text

    def _lengths(self, part: Part) -> tuple[int, ...]:
        """Tokens that can enter a whole tower."""
        axes = self.axes[part]
        return axes.tokens[-1:] if part == "vision" else axes.tokens

    def weights(self, plan: PruningPlan | None) -> WeightSource:
        return clip_weights(self.checkpoint, self.shape, plan)

    def _graph(
        self, part: Part, shape: ClipShape, weights: WeightSource, depth: int
    ) -> GraphBuilder:
        """The first blocks of a tower, ``states [1, N, D]`` to what it pools."""
        graph = GraphBuilder(f"{part}_blocks", self.target)
        width = self.stack(part).hidden_size
        kind = ir.DataType.from_numpy(self.target.numpy)
        states = graph.input("states", kind, (1, "tokens", width))
        tower = tower_of(graph, _shallow(shape, part, depth), weights, part)
        graph.output("pooled", tower.pooled(states), kind, (1, 1, width))
        return graph

    def _blocks(self, part: Part, heads: int, channels: int) -> Pair:
        depth = self.depth(part)

        def graphs() -> list[GraphBuilder]:
            shape, weights = self.uniform(part, heads, channels)
            return [self._graph(part, shape, weights, count) for count in (depth, 1)]

        name = name_of(part, heads, channels)
        return Pair(name, self.axes[part].tokens, depth - 1, graphs, self._of_length(part))

    def _places(self, part: Part, heads: int, channels: int) -> Pair:
        """Blocks with a drop place after each that keeps everything, against blocks without."""
        depth = self.depth(part)
        drops = tuple(_drop(part, after, 1.0) for after in range(1, depth))

        def graphs() -> list[GraphBuilder]:
            shape, weights = self.uniform(part, heads, channels)
            dropping = replace(shape, drops=drops)
            return [self._graph(part, each, weights, depth) for each in (dropping, shape)]

        feeds = self._of_length(part)
        return Pair(drop_name(part, heads), self.axes[part].tokens, depth - 1, graphs, feeds)

    def _around(self, part: Part) -> Pair:
        """A tower of one block from its own input to its embedding, against that block from states."""

        def graphs() -> list[GraphBuilder]:
            shape, weights = _shallow(self.shape, part, 1), self.weights(None)
            build = vision_model if part == "vision" else text_model
            return [build(shape, weights, self.target), self._graph(part, shape, weights, 1)]

        def feeds(tokens: int) -> list[Feeds]:
            return [self._input(part, tokens), self._states(part, tokens)]

        return Pair(fixed_name(part), self._lengths(part), 1, graphs, feeds)

    def _input(self, part: Part, tokens: int) -> Feeds:
        random = np.random.default_rng(self.seed)
        if part == "vision":
            tower = self.shape.sizes.vision
            image = (1, tower.num_channels, tower.image_size, tower.image_size)
            return {"pixel_values": random.normal(size=image).astype(np.float32)}
        ids = random.integers(self.shape.sizes.text.vocab_size, size=(1, tokens))
        return {"input_ids": ids.astype(np.int64)}

    def _of_length(self, part: Part) -> Callable[[int], Feeds]:
        return partial(self._states, part)

    def _states(self, part: Part, tokens: int) -> Feeds:
        width = self.stack(part).hidden_size
        states = STATES * np.random.default_rng(self.seed).normal(size=(1, tokens, width))
        return {"states": states.astype(self.target.numpy)}


def _surfaces(
    part: Tower, axes: Axes, lengths: tuple[int, ...], readings: Readings
) -> tuple[Surface, ...]:
    around = readings[fixed_name(part)].block
    fixed = np.array([around[n] for n in lengths])[:, None, None]
    return (
        surface(part, "fixed", lengths, fixed),
        *block_surfaces(part, axes, readings),
        *end_surfaces(part, axes, readings),
    )


def _drop(part: Part, after: int, share: float) -> DropPlan:
    image, text = (share, 1.0) if part == "vision" else (1.0, share)
    return DropPlan(part=part, after_layer=after, vision_keep_ratio=image, text_keep_ratio=text)


def _shallow(shape: ClipShape, part: Part, count: int) -> ClipShape:
    """The shape with only the first blocks of a tower."""
    sizes = shape.sizes
    if part == "vision":
        return replace(shape, sizes=replace(sizes, vision=sizes.vision.first(count)))
    return replace(shape, sizes=replace(sizes, text=sizes.text.first(count)))
