"""What the adapters of CLIP and BLIP have in common: options, counts and shares of parts of an encoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from comp.adapter import Forwarding, KeptShare
from comp.checkpoints.encoder_shape import BlockSize
from comp.families.encoder.forward import EncoderOptions
from comp.masks import StructureCounts
from comp.plan import Part, Place, Workload
from comp.tokens.drop_rules import DropRule
from comp.tokens.state import TokenState

Shares = Mapping[Place, tuple[float, float]]
Kept = dict[Place, KeptShare]


class TextBatch(Protocol):
    """A batch with texts ``[B, L]``, 0 in the mask where they are padded."""

    @property
    def attention_mask(self) -> Tensor: ...


def typical_workload(batches: Iterable[TextBatch], image_tokens: int) -> Workload:
    """One request: so many image tokens, and a text as long as these are in the mean."""
    masks = [batch.attention_mask for batch in batches]
    tokens, rows = sum(int(mask.sum()) for mask in masks), sum(len(mask) for mask in masks)
    return Workload(image_tokens=image_tokens, text_tokens=max(1, round(tokens / rows)))


def rules_of(forwarding: Forwarding, part: Part) -> dict[int, DropRule]:
    """The drop rules of a part, by blocks passed."""
    return {layer: rule for (of, layer), rule in (forwarding.rules or {}).items() if of == part}


def options_of(forwarding: Forwarding, part: Part) -> EncoderOptions:
    """How a pre-norm encoder runs."""
    return EncoderOptions(forwarding.masks, rules_of(forwarding, part), forwarding.calibrated)


def blocks_left(
    part: Part, blocks: Sequence[BlockSize], counts: StructureCounts, first: int = 0
) -> tuple[BlockSize, ...]:
    """The blocks, numbered from ``first``, with so many heads and channels; without an entry: whole."""
    return tuple(
        replace(
            block,
            heads=counts.heads.get((part, number), block.heads),
            channels=counts.channels.get((part, number), block.channels),
        )
        for number, block in enumerate(blocks, start=first)
    )


def ratios_of(shares: Shares) -> dict[Place, float]:
    """Of the two keep ratios of each place that of the one kind of token there."""
    return {
        place: vision if place[0] == "vision" else text for place, (vision, text) in shares.items()
    }


def kept_shares(part: Part, count: int, kept: Mapping[int, TokenState]) -> Kept:
    """What came and stayed at each place, of the one kind of token of a part."""
    found: Kept = {}
    for layer, tokens in sorted(kept.items()):
        stayed = int((tokens.alive > 0).sum())
        counts = (count, stayed, 0, 0) if part == "vision" else (0, 0, count, stayed)
        found[part, layer] = KeptShare(*counts)
        count = stayed
    return found


def added(one: Kept, other: Kept) -> Kept:
    """The shares of two passes together."""
    found = dict(one)
    for place, share in other.items():
        if place in found:
            sums = (
                a + b
                for a, b in zip(vars(found[place]).values(), vars(share).values(), strict=True)
            )
            found[place] = KeptShare(*sums)
        else:
            found[place] = share
    return found
