"""Which families can be profiled, and what reads their checkpoints."""

from collections.abc import Callable
from pathlib import Path

from export.graph.builder import Target
from export.latency.blocks import Blocks
from export.latency.clip_blocks import ClipBlocks
from export.latency.llava_blocks import LlavaBlocks

READERS: dict[str, Callable[[Path, Target, int | None, int], Blocks]] = {
    "llava": LlavaBlocks.of,
    "clip": ClipBlocks.of,
}
