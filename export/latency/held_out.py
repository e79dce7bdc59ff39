"""Held-out models that no surface was measured on: they give the error of a table's predictions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from comp.latency.table import LatencyTable
from comp.masks import StructureCounts
from comp.plan import KEEP_UNIT, Part, PruningPlan, Workload
from export.latency.blocks import Blocks
from export.latency.clock import Clock
from export.latency.grid import NARROW
from export.latency.timings import Timing, loaded

DENSE = "dense"
FEWEST_TEXT = 8
LEAST_KEPT = 200  # thousandths


@dataclass(frozen=True)
class Model:
    """A whole model and one request; without a plan it is the dense one."""

    name: str
    plan: PruningPlan | None
    on: Workload


def models(blocks: Blocks, count: int) -> Iterator[Model]:
    """The dense model on the longest text, and random plans on texts of random length."""
    image = blocks.image_tokens
    longest = blocks.text_tokens
    yield Model(DENSE, None, Workload(image_tokens=image, text_tokens=longest))
    for number in range(1, count + 1):
        random = np.random.default_rng([blocks.seed, number])
        text = int(random.integers(min(FEWEST_TEXT, longest), longest + 1))
        on = Workload(image_tokens=image, text_tokens=text)
        yield Model(f"plan {number}", random_plan(blocks, random), on)


def random_plan(blocks: Blocks, random: np.random.Generator) -> PruningPlan:
    """A random plan of CoMP's kind: another width for each block, and drops where CoMP has them."""
    sizes: dict[Part, list[tuple[int, int]]] = {"vision": [], "language": []}
    for block in blocks.dense_blocks():
        units = max(1, block.channels // NARROW)
        width = min(block.channels, NARROW * int(random.integers(1, units + 1)))
        sizes[block.part].append((int(random.integers(1, block.heads + 1)), width))
    return blocks.cut(
        sizes, blocks.drops(lambda: int(random.integers(LEAST_KEPT, KEEP_UNIT + 1)) / KEEP_UNIT)
    )


def predicted(table: LatencyTable, model: Model) -> float:
    """Predicted milliseconds to the first token."""
    kept = () if model.plan is None else model.plan.blocks
    counts = StructureCounts(
        {(block.part, block.index): len(block.kept_key_value_heads) for block in kept},
        {(block.part, block.index): len(block.kept_channels) for block in kept},
    )
    drops = () if model.plan is None else model.plan.drops
    shares = {drop.place: (drop.vision_keep_ratio, drop.text_keep_ratio) for drop in drops}
    return table.milliseconds(counts, shares, model.on)


def measured_whole(blocks: Blocks, model: Model, clock: Clock) -> Timing:
    """Measure all graphs in turn: of a LLaVA to the first token's logits, of a CLIP to both embeddings."""
    with TemporaryDirectory(prefix="comp-export-profile-") as directory:
        graphs = loaded(blocks.whole_graphs(model.plan), Path(directory), clock)
        feeds = blocks.whole_feeds(model.plan, model.on)
        times = clock.in_turn(
            [graph.bound(each) for graph, each in zip(graphs, feeds, strict=True)]
        )
    total = median(sum(each) for each in zip(*times, strict=True))
    return Timing({}, {model.on.image_tokens + model.on.text_tokens: total})
