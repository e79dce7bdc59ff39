"""Helpers of the adapters of CLIP and BLIP: options, counts and shares of parts of an encoder."""

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
    """A batch with texts ``[B, L]``; the mask is 0 for padding."""

    @property
    def attention_mask(self) -> Tensor: ...


def typical_workload(batches: Iterable[TextBatch], image_tokens: int) -> Workload:
    """Workload of one request with ``image_tokens`` and a text of the mean length of these batches."""
    masks = [batch.attention_mask for batch in batches]
    tokens, rows = sum(int(mask.sum()) for mask in masks), sum(len(mask) for mask in masks)
    return Workload(image_tokens=image_tokens, text_tokens=max(1, round(tokens / rows)))


def rules_of(forwarding: Forwarding, part: Part) -> dict[int, DropRule]:
    """Drop rules of a part, by number of blocks passed."""
    return {layer: rule for (of, layer), rule in (forwarding.rules or {}).items() if of == part}


def options_of(forwarding: Forwarding, part: Part) -> EncoderOptions:
    """Options of a pre-norm encoder for one part of a forward pass."""
    return EncoderOptions(forwarding.masks, rules_of(forwarding, part), forwarding.calibrated)


def blocks_left(
    part: Part, blocks: Sequence[BlockSize], counts: StructureCounts, first: int = 0
) -> tuple[BlockSize, ...]:
    """Blocks, numbered from ``first``, with these heads and channels; whole without an entry."""
    return tuple(
        replace(
            block,
            heads=counts.heads.get((part, number), block.heads),
            channels=counts.channels.get((part, number), block.channels),
        )
        for number, block in enumerate(blocks, start=first)
    )


def ratios_of(shares: Shares) -> dict[Place, float]:
    """Keep ratio of the one kind of token at each place, out of the two ratios."""
    return {
        place: vision if place[0] == "vision" else text for place, (vision, text) in shares.items()
    }


def kept_shares(part: Part, count: int, kept: Mapping[int, TokenState]) -> Kept:
    """Numbers of tokens before and after each place, of the one kind of token of a part.

    Args:
        part: vision or language.
        count: tokens that enter the part.
        kept: tokens after each place, by number of blocks passed.
    """
    shares: Kept = {}
    for layer, tokens in sorted(kept.items()):
        stayed = int((tokens.alive > 0).sum())
        counts = (count, stayed, 0, 0) if part == "vision" else (0, 0, count, stayed)
        shares[part, layer] = KeptShare(*counts)
        count = stayed
    return shares


def added(one: Kept, other: Kept) -> Kept:
    """Sums of the shares of two passes."""
    sums_by_place = dict(one)
    for place, share in other.items():
        if place in sums_by_place:
            sums = (
                a + b
                for a, b in zip(
                    vars(sums_by_place[place]).values(), vars(share).values(), strict=True
                )
            )
            sums_by_place[place] = KeptShare(*sums)
        else:
            sums_by_place[place] = share
    return sums_by_place
