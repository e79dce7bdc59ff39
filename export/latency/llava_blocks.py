"""Profile a LLaVA: pairs of its own graphs that differ by a few blocks.

The graphs are those of ``export.families.llava.decoder``, with fewer blocks than the model has, all of one
size, with the model's own weights. The difference of the two graphs' times is the time of the blocks by
which they differ; the time of the smaller graph covers the rest. Heads are measured with the narrowest FFN,
and widths with one head: the time of a block is taken as the sum of its attention's time and the time that
its FFN adds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from comp.checkpoints.shapes import DecoderShape, TowerShape
from comp.errors import CompExportError
from comp.flops.llava import llava_macs
from comp.latency.table import DenseBlock, Surface, dense_blocks
from comp.plan import DropPlan, Part, PruningPlan, Workload
from export.artifact.caches import CACHE_LENGTHS, PAST
from export.configs.llava import LlavaShape, llava_of
from export.families.llava.decoder import decoder_model, embed_tokens
from export.families.llava.vision import vision_encoder
from export.graph.builder import GraphBuilder, Target
from export.latency.blocks import (
    LEAST_BLOCKS,
    STATES,
    Blocks,
    dense_config,
    drop_name,
    name_of,
    sizes_measured,
)
from export.latency.grid import Axes, axes_of
from export.latency.surfaces import block_surfaces, end_surfaces, surface
from export.latency.timings import Feeds, Pair, Readings
from export.weights.checkpoint import CheckpointWeights, WeightSource
from export.weights.slim import slim_weights

TEXT_TOKENS = 64  # of the longest prompt, by default


@dataclass(frozen=True)
class LlavaBlocks(Blocks):
    """A dense LLaVA."""

    family = "llava"
    task = "question"
    shape: LlavaShape

    @classmethod
    def of(
        cls, checkpoint: Path, target: Target, text_tokens: int | None, seed: int
    ) -> "LlavaBlocks":
        """Read the model.

        Raises:
            CompExportError: it is not a dense LLaVA, or has too few blocks to measure their difference.
        """
        shape = llava_of(dense_config(checkpoint), str(checkpoint))
        sizes = shape.sizes
        if sizes.num_layers < LEAST_BLOCKS or not sizes.vision_used_layers:
            raise CompExportError(
                f"{checkpoint} has {sizes.num_layers} language blocks and uses "
                f"{sizes.vision_used_layers} of the tower: {LEAST_BLOCKS} and 1 are the fewest that can "
                "be measured"
            )
        longest = shape.max_position_embeddings - sizes.image_tokens
        text_tokens = min(TEXT_TOKENS, longest) if text_tokens is None else text_tokens
        if text_tokens > longest:
            raise CompExportError(
                f"--text-tokens {text_tokens}: beside an image the model has positions for {longest}"
            )
        return cls(checkpoint, shape, target, text_tokens, seed)

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the language model."""
        return self.shape.sizes.image_tokens

    @property
    def tower_length(self) -> int:
        """Patches, and [CLS]."""
        return self.shape.sizes.vision.tokens

    @property
    def axes(self) -> dict[Part, Axes]:
        sizes = self.shape.sizes
        longest = sizes.image_tokens + self.text_tokens
        tower, text = sizes.vision.blocks[0], sizes.text.blocks[0]
        return {
            "vision": axes_of(self.tower_length, tower.heads, tower.channels, fixed=True),
            "language": axes_of(longest, text.heads, text.channels),
        }

    def dense_blocks(self) -> tuple[DenseBlock, ...]:
        """Language blocks, and the blocks of the tower that run, as the adapter lists them."""
        sizes = self.shape.sizes
        return (*dense_blocks("language", sizes.text), *dense_blocks("vision", sizes.used_tower))

    def pairs(self) -> Iterator[Pair]:
        vision, language = self.axes["vision"], self.axes["language"]
        yield Pair("embedding", language.tokens, 1, self._embedding, self._ids)
        for heads, channels in sizes_measured(vision):
            yield self._tower(heads, channels)
        for heads, channels in sizes_measured(language):
            yield self._blocks(heads, channels)
        for heads in language.heads:
            yield self._places(heads, language.channels[0])

    def surfaces(self, readings: Readings) -> tuple[Surface, ...]:
        tower, language = self.axes["vision"], self.axes["language"]
        fixed = median(
            readings[name_of("vision", heads, tower.channels[0])].rest[tower.tokens[0]]
            for heads in tower.heads
        )
        embedding = [readings["embedding"].rest[n] for n in language.tokens]
        return (
            surface("vision", "fixed", tower.tokens, np.array([[[fixed]]])),
            *block_surfaces("vision", tower, readings),
            surface("embedding", "fixed", language.tokens, np.array(embedding)[:, None, None]),
            *block_surfaces("language", language, readings),
            *end_surfaces("language", language, readings),
        )

    def drops(self, share: Callable[[], float]) -> tuple[DropPlan, ...]:
        """At three depths, tokens of both kinds."""
        return tuple(
            DropPlan(after_layer=place, vision_keep_ratio=share(), text_keep_ratio=share())
            for place in self.shape.sizes.drop_layers
        )

    def macs(self, plan: PruningPlan | None, on: Workload) -> int:
        return llava_macs(self.shape.sizes, on.image_tokens, on.text_tokens, plan).macs

    def whole_graphs(self, plan: PruningPlan | None) -> tuple[GraphBuilder, ...]:
        """Vision encoder, embedding and decoder as `onnx` builds them, cut by a plan."""
        shape = self.shape if plan is None else self.shape.pruned(plan)
        weights = self.weights(plan)
        return tuple(
            build(shape, weights, self.target)
            for build in (vision_encoder, embed_tokens, decoder_model)
        )

    def whole_feeds(self, plan: PruningPlan | None, on: Workload) -> tuple[Feeds, ...]:
        """Inputs of these graphs for one prompt with one image."""
        sizes = (self.shape if plan is None else self.shape.pruned(plan)).sizes
        tokens = on.image_tokens + on.text_tokens
        return (
            self._pixels(0),
            self._ids(tokens),
            self._prompt(sizes.text.heads, tokens, on.text_tokens),
        )

    def weights(self, plan: PruningPlan | None) -> WeightSource:
        source = CheckpointWeights(self.checkpoint)
        return source if plan is None else slim_weights(self.checkpoint, plan, source)

    def stack(self, part: Part) -> DecoderShape | TowerShape:
        sizes = self.shape.sizes
        return sizes.text if part == "language" else sizes.used_tower

    def _tower(self, heads: int, channels: int) -> Pair:
        depth = self.depth("vision")

        def graphs() -> list[GraphBuilder]:
            shape, weights = self.uniform("vision", heads, channels)
            features = len(shape.feature_layers)
            return [
                vision_encoder(
                    replace(shape, feature_layers=(end,) * features), weights, self.target
                )
                for end in (depth, 0)
            ]

        name = name_of("vision", heads, channels)
        return Pair(name, self.axes["vision"].tokens, depth, graphs, self._pixels)

    def _blocks(self, heads: int, channels: int) -> Pair:
        depth = self.depth("language")

        def graphs() -> list[GraphBuilder]:
            shape, weights = self.uniform("language", heads, channels)
            return [
                decoder_model(_shallow(shape, blocks), weights, self.target)
                for blocks in (depth, 1)
            ]

        def feeds(tokens: int) -> list[Feeds]:
            return [self._prompt((heads,) * blocks, tokens) for blocks in (depth, 1)]

        name = name_of("language", heads, channels)
        return Pair(name, self.axes["language"].tokens, depth - 1, graphs, feeds)

    def _places(self, heads: int, channels: int) -> Pair:
        """Blocks with a drop place after each that keeps everything, against blocks without."""
        depth = self.depth("language")
        drops = tuple(
            DropPlan(after_layer=after, vision_keep_ratio=1.0, text_keep_ratio=1.0)
            for after in range(1, depth)
        )

        def graphs() -> list[GraphBuilder]:
            shape, weights = self.uniform("language", heads, channels)
            plain = _shallow(shape, depth)
            dropping = replace(plain, sizes=replace(plain.sizes, drops=drops))
            return [decoder_model(each, weights, self.target) for each in (dropping, plain)]

        def feeds(tokens: int) -> Feeds:
            return self._prompt((heads,) * depth, tokens)

        return Pair(
            drop_name("language", heads), self.axes["language"].tokens, depth - 1, graphs, feeds
        )

    def _embedding(self) -> list[GraphBuilder]:
        return [embed_tokens(self.shape, self.weights(None), self.target)]

    def _ids(self, tokens: int) -> Feeds:
        ids = np.random.default_rng(self.seed).integers(
            self.shape.sizes.text.vocab_size, size=(1, tokens)
        )
        return {"input_ids": ids.astype(np.int64)}

    def _pixels(self, tokens: int) -> Feeds:
        del tokens  # those of an image
        tower = self.shape.sizes.vision
        image = (1, tower.num_channels, tower.image_size, tower.image_size)
        random = np.random.default_rng(self.seed).normal(size=image)
        return {"pixel_values": random.astype(np.float32)}

    def _prompt(self, kv_heads: tuple[int, ...], tokens: int, text: int | None = None) -> Feeds:
        """A prompt with an empty past: image tokens, then ``text`` text tokens."""
        text = min(tokens, self.text_tokens) if text is None else text
        width = self.shape.sizes.text.hidden_size
        states = STATES * np.random.default_rng(self.seed).normal(size=(1, tokens, width))
        places = np.arange(tokens, dtype=np.int64)[None]
        feeds: Feeds = {
            "inputs_embeds": states.astype(np.float32),
            "position_ids": places,
            "vision_positions": np.ascontiguousarray(places[:, : tokens - text]),
            "text_positions": np.ascontiguousarray(places[:, tokens - text :]),
        }
        if self.target.fused:
            # A graph reads one row for each of its segments, of which there is at most one a block.
            feeds[CACHE_LENGTHS] = np.zeros((len(kv_heads), 1), np.int64)
        for number, heads in enumerate(kv_heads):
            empty = np.zeros((1, heads, 0, self.shape.sizes.text.head_dim), self.target.numpy)
            feeds[f"{PAST}{number}.key"] = empty
            feeds[f"{PAST}{number}.value"] = empty
        return feeds


def _shallow(shape: LlavaShape, blocks: int) -> LlavaShape:
    """The shape with only its first language blocks."""
    return replace(shape, sizes=replace(shape.sizes, text=shape.sizes.text.first(blocks)))
