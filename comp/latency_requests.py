"""What a request of a family is made of: which blocks run on how many tokens until the first answer.

The counterpart of the FLOPs counters, in milliseconds, and closer to the graphs than they are: the FFN
behind a drop place works on the tokens that are left, and the last block on one token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from comp.flops import token_counts
from comp.plan import Part, Place, Workload

if TYPE_CHECKING:
    from comp.masks import StructureCounts

Shares = Mapping[Place, tuple[float, float]]


class Table(Protocol):
    """As much of a ``LatencyTable`` as a request needs."""

    image_tokens: int
    tower_length: int

    def ms(self, part: Any, kind: Any, tokens: int, heads: int = 0, channels: int = 0) -> float: ...

    def of(self, part: Part) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Request:
    """How the blocks of a family add up, and the surfaces that this reads."""

    surfaces: tuple[tuple[str, str], ...]
    by_part: "Callable[[Any, StructureCounts, Shares, Workload], dict[str, float]]"


def llava_prefill(
    table: Table, counts: "StructureCounts", shares: Shares, on: Workload
) -> dict[str, float]:
    """Vision tower and projector for each image begun, embedding, and the decoder's prefill.

    A place in ``shares`` is in the graph, and takes its ranking and gathering, also where it keeps all.
    """
    found = {"vision": 0.0, "embedding": 0.0, "language": 0.0}
    if on.image_tokens:
        images = -(-on.image_tokens // table.image_tokens)
        seen = table.tower_length
        one = table.ms("vision", "fixed", seen)
        for block in table.of("vision"):
            heads, channels = _left(block, counts)
            one += table.ms("vision", "attention", seen, heads=heads)
            one += table.ms("vision", "ffn", seen, channels=channels)
        found["vision"] = images * one
    found["embedding"] = table.ms("embedding", "fixed", on.image_tokens + on.text_tokens)
    blocks = table.of("language")
    ratios = {after: share for (part, after), share in shares.items() if part == "language"}
    tokens = [
        image + text
        for image, text in token_counts(len(blocks), on.image_tokens, on.text_tokens, ratios)
    ]
    total = 0.0
    for number, block in enumerate(blocks):
        heads, channels = _left(block, counts)
        came, ends = tokens[number], number + 1 == len(blocks)
        behind = 1 if ends else tokens[number + 1]
        total += table.ms("language", "last" if ends else "attention", came, heads=heads)
        total += table.ms("language", "ffn", behind, channels=channels)
        if number + 1 in ratios:
            total += table.ms("language", "drop", came, heads=heads)
    found["language"] = total
    return found


REQUESTS: dict[str, Request] = {
    "llava": Request(
        surfaces=(
            ("vision", "fixed"),
            ("vision", "attention"),
            ("vision", "ffn"),
            ("embedding", "fixed"),
            ("language", "attention"),
            ("language", "ffn"),
            ("language", "last"),
            ("language", "drop"),
        ),
        by_part=llava_prefill,
    ),
}
"""By family; of others there are no tables."""


def _left(block: Any, counts: "StructureCounts") -> tuple[int, int]:
    key = block.part, block.index
    return counts.heads.get(key, block.heads), counts.channels.get(key, block.channels)
