"""Add up the times of the blocks of a request, until the first answer, by family.

The counterpart of the FLOPs counters, in milliseconds. As in the graphs, the FFN after a drop place works on
the tokens that are left, and the last block on one token.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from comp.flops.encoder import tokens_by_block
from comp.flops.llava import token_counts
from comp.plan import Part, Place, Workload
from comp.registry.code import resolve
from comp.registry.families import FAMILIES, family_called

if TYPE_CHECKING:
    from comp.masks import StructureCounts

Shares = Mapping[Place, tuple[float, float]]


class Table(Protocol):
    """The part of ``LatencyTable`` that a request needs."""

    image_tokens: int
    tower_length: int

    def ms(self, part: Any, kind: Any, tokens: int, heads: int = 0, channels: int = 0) -> float: ...

    def of(self, part: Part) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Request:
    """Adds up the times of a family's blocks until the first answer; names the surfaces that it reads."""

    until: str
    surfaces: tuple[tuple[str, str], ...]
    by_part: "Callable[[Any, StructureCounts, Shares, Workload], dict[str, float]]"


def llava_prefill(
    table: Table, counts: "StructureCounts", shares: Shares, on: Workload
) -> dict[str, float]:
    """Milliseconds by part: vision tower and projector for each image, embedding, and prefill.

    A part of an image counts as a whole one. Each place in ``shares`` takes the time of its ranking and
    gathering, even if it keeps all tokens.
    """
    milliseconds = {"vision": 0.0, "embedding": 0.0, "language": 0.0}
    if on.image_tokens:
        images = -(-on.image_tokens // table.image_tokens)
        seen = table.tower_length
        one = table.ms("vision", "fixed", seen)
        for block in table.of("vision"):
            heads, channels = _left(block, counts)
            one += table.ms("vision", "attention", seen, heads=heads)
            one += table.ms("vision", "ffn", seen, channels=channels)
        milliseconds["vision"] = images * one
    milliseconds["embedding"] = table.ms("embedding", "fixed", on.image_tokens + on.text_tokens)
    blocks = table.of("language")
    ratios = {after: share for (part, after), share in shares.items() if part == "language"}
    tokens = [
        image + text
        for image, text in token_counts(len(blocks), on.image_tokens, on.text_tokens, ratios)
    ]
    milliseconds["language"] = _stack(table, "language", counts, tokens, ratios)
    return milliseconds


def clip_pair(
    table: Table, counts: "StructureCounts", shares: Shares, on: Workload
) -> dict[str, float]:
    """Milliseconds of one image and one text from input to embedding; a part without input takes 0.

    As in ``llava_prefill``, each place takes the time of its ranking and gathering.
    """
    milliseconds = {"vision": 0.0, "language": 0.0}
    for part, (count, which) in {
        "vision": (on.image_tokens, 0),
        "language": (on.text_tokens, 1),
    }.items():
        if count:
            ratios = {after: share[which] for (of, after), share in shares.items() if of == part}
            seen = tokens_by_block(len(table.of(part)), count, ratios)  # type: ignore[arg-type]
            milliseconds[part] = table.ms(part, "fixed", count)
            milliseconds[part] += _stack(
                table, part, counts, [entering for entering, _ in seen], ratios
            )
    return milliseconds


LLAVA = Request(
    until="the first token",
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
)
CLIP = Request(
    until="both embeddings",
    surfaces=tuple(
        (part, kind)
        for part in ("vision", "language")
        for kind in ("fixed", "attention", "ffn", "last", "drop")
    ),
    by_part=clip_pair,
)


def measured_families() -> tuple[str, ...]:
    """Names of the families whose blocks ``profile`` measures, and that ``prune --cost latency`` takes."""
    return tuple(family.name for family in FAMILIES if family.latency is not None)


def request_of(family: str) -> Request | None:
    """Return the ``Request`` of a family; ``None`` if there are no latency tables of it."""
    record = family_called(family)
    if record is None or record.latency is None:
        return None
    request: Request = resolve(record.latency)
    return request


def _stack(
    table: Table,
    part: Any,
    counts: "StructureCounts",
    tokens: Sequence[int],
    places: Collection[int],
) -> float:
    """Milliseconds of the blocks of a part; ``tokens`` enter each, and the last block leaves one.

    Tokens dropped after a block's attention do not reach its FFN.
    """
    total, blocks = 0.0, table.of(part)
    for number, block in enumerate(blocks):
        heads, channels = _left(block, counts)
        entering, ends = tokens[number], number + 1 == len(blocks)
        left = 1 if ends else tokens[number + 1]
        total += table.ms(part, "last" if ends else "attention", entering, heads=heads)
        total += table.ms(part, "ffn", left, channels=channels)
        if number + 1 in places:
            total += table.ms(part, "drop", entering, heads=heads)
    return total


def _left(block: Any, counts: "StructureCounts") -> tuple[int, int]:
    key = block.part, block.index
    return counts.heads.get(key, block.heads), counts.channels.get(key, block.channels)
