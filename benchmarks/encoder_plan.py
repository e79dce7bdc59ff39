"""A plan of CoMP's kind for a CLIP or a BLIP and a rate, without a search on data.

    python benchmarks/encoder_plan.py --shape blip-nlvr --rate 0.85

As in plans of ``comp-export prune`` with all modes, heads and FFN channels of every part are removed, and
tokens of both encoders in every block that may drop some; deeper blocks lose more heads and channels.
Which head or channel is removed does not matter for speed, so they are drawn at random. The same shape,
rate and seed give the same plan.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from comp.checkpoints.encoder_shape import PACKAGED, EncoderShape, packaged_shape
from comp.checkpoints.shapes import BlockSize
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from comp.flops.encoder import ANSWER_LENGTH, CAPTION_LENGTH, request_macs, usual_request
from comp.plan import KEEP_UNIT, BlockPlan, DropPlan, Part, PruningPlan, Workload
from comp.utils.console import print_table, say

ALIGN = 16  # multiple of channels that `prune` keeps in models of this width
STEPS = 1000  # the strengths to try: 0, 1/1000, …, 1

PARTS: tuple[Part, ...] = ("vision", "language", "cross")

# Shares removed at strength 1.
WIDTH_CUT = 0.55  # of heads and channels, on average over the blocks
SLOPE = 0.3  # the first block loses this share less than the average, the last this share more
IMAGE_CUT, TEXT_CUT = 0.3, 0.15  # of the tokens that reach a block


def find_plan(
    shape: EncoderShape, rate: float, on: Workload, model: str, seed: int = 0
) -> PruningPlan:
    """Find the plan whose rate, counted by ``comp.flops.encoder``, is nearest to ``rate``.

    One strength cuts everything in proportion; then, with the widths fixed, only the strength of token
    dropping is adjusted, because widths change in coarse steps.

    Args:
        shape: sizes of the dense model.
        rate: share of the multiply-accumulates of a request to remove.
        on: the request.
        model: name to record.
        seed: seed of the choice of heads and channels.

    Raises:
        CompExportError: this kind of plan does not reach the rate.
    """
    dense = macs_of(SlimShape(shape, shape), on)
    target = (1 - rate) * dense

    def cost(width_step: int, token_step: int) -> int:
        cut = SlimShape(shape, narrowed(shape, width_step), drops_of(shape, token_step))
        return macs_of(cut, on)

    least = cost(STEPS, STEPS)
    if not 0 < rate < 1 or least > target:
        raise CompExportError(
            f"--rate {rate}: this kind of plan removes up to {1 - least / dense:.2f}"
        )
    both = [cost(step, step) for step in range(STEPS + 1)]
    width_step = max(step for step, macs in enumerate(both) if macs >= target)
    costs = [cost(width_step, step) for step in range(STEPS + 1)]
    token_step = min(range(STEPS + 1), key=lambda step: abs(costs[step] - target))
    drops = drops_of(shape, token_step)
    return PruningPlan(
        family=shape.family,
        task=shape.task,
        model=model,
        method="encoder_plan",
        rate=1 - costs[token_step] / dense,
        workload=on,
        macs_dense=dense,
        macs=costs[token_step],
        blocks=tuple(_blocks(shape, narrowed(shape, width_step), seed)),
        drops=drops,
    )


def new_tokens_of(shape: EncoderShape) -> int:
    """Tokens of an answer or a caption, as FLOPs count them; 0 if nothing is generated."""
    return {"question": ANSWER_LENGTH, "caption": CAPTION_LENGTH}.get(shape.task, 0)


def macs_of(shape: SlimShape, on: Workload) -> int:
    """Multiply-accumulates of a request."""
    return sum(request_macs(shape.slim, on, shape.ratios).values())


def narrowed(shape: EncoderShape, step: int) -> EncoderShape:
    """The shape with the heads and channels left at strength ``step / STEPS``."""

    def cut(blocks: tuple[BlockSize, ...]) -> tuple[BlockSize, ...]:
        slopes = np.linspace(-SLOPE, SLOPE, len(blocks))
        return tuple(
            _cut(block, 1 - WIDTH_CUT * (1 + float(slope)) * step / STEPS)
            for block, slope in zip(blocks, slopes, strict=True)
        )

    decoder = shape.decoder
    return replace(
        shape,
        vision=replace(shape.vision, blocks=cut(shape.vision.blocks)),
        text=replace(shape.text, blocks=cut(shape.text.blocks)),
        decoder=replace(decoder, blocks=cut(decoder.blocks)) if decoder else None,
    )


def _cut(block: BlockSize, share: float) -> BlockSize:
    channels = max(ALIGN, round(share * block.channels / ALIGN) * ALIGN)
    return replace(
        block,
        heads=max(1, round(share * block.heads)),
        channels=min(block.channels, channels),
        cross_heads=tuple(max(1, round(share * heads)) for heads in block.cross_heads),
    )


def drops_of(shape: EncoderShape, step: int) -> tuple[DropPlan, ...]:
    """The drops at strength ``step / STEPS``; keep ratios in whole thousandths."""
    if step == 0:
        return ()
    image, text = (
        round(KEEP_UNIT * (1 - cut * step / STEPS)) / KEEP_UNIT for cut in (IMAGE_CUT, TEXT_CUT)
    )
    drops = []
    for part, count in _places(shape):
        vision, read = (image, 1.0) if part == "vision" else (1.0, text)
        drops += [
            DropPlan(part=part, after_layer=n, vision_keep_ratio=vision, text_keep_ratio=read)
            for n in range(1, count + 1)
        ]
    return tuple(drops)


def _places(shape: EncoderShape) -> tuple[tuple[Part, int], ...]:
    """Number of blocks of each encoder that drop tokens; not a last one of which only one token is read."""
    seen, read = len(shape.vision.blocks), len(shape.text.blocks)
    if shape.family == "clip":
        return ("vision", seen - 1), ("language", read - 1)
    text_count = {"question": read, "caption": 0}.get(shape.task, read - 1)
    return ("vision", seen), ("language", text_count)


def _blocks(dense: EncoderShape, left: EncoderShape, seed: int) -> Iterator[BlockPlan]:
    for code, part in enumerate(PARTS):
        sizes = zip(_sizes(dense, part), _sizes(left, part), strict=True)
        for index, ((heads, channels), (few_heads, few_channels)) in enumerate(sizes):
            rng = np.random.default_rng([seed, code, index])
            yield BlockPlan(
                part=part,
                index=index,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                intermediate_size=channels,
                kept_key_value_heads=_drawn(rng, heads, few_heads),
                kept_channels=_drawn(rng, channels, few_channels),
            )


def _sizes(shape: EncoderShape, part: Part) -> list[tuple[int, int]]:
    """Heads and channels of the blocks of a part; decoders come after encoders."""
    if part == "vision":
        return [(block.heads, block.channels) for block in shape.vision.blocks]
    language = shape.text.blocks + (shape.decoder.blocks if shape.decoder else ())
    if part == "language":
        return [(block.heads, block.channels) for block in language]
    return [(heads, 0) for block in language for heads in block.cross_heads]


def _drawn(rng: np.random.Generator, count: int, kept: int) -> tuple[int, ...]:
    return tuple(sorted(int(place) for place in rng.permutation(count)[:kept]))


def describe_plan(plan: PruningPlan) -> dict[str, object]:
    """Describe what the plan keeps, block by block, for reports."""
    described: dict[str, object] = {"rate": plan.rate}
    for part in PARTS:
        blocks = plan.part(part)
        if blocks:
            described[f"{part}_heads"] = [len(block.kept_heads) for block in blocks]
        if any(block.intermediate_size for block in blocks):
            described[f"{part}_channels"] = [len(block.kept_channels) for block in blocks]
    ratios = {(d.part, d.vision_keep_ratio, d.text_keep_ratio) for d in plan.drops}
    for part, image, text in sorted(ratios):
        described[f"{part}_tokens_kept_by_a_block"] = image if part == "vision" else text
    return described


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show the plan for a shape and a rate.")
    parser.add_argument("--shape", choices=PACKAGED, default="blip-nlvr")
    parser.add_argument("--rate", type=float, default=0.85)
    parser.add_argument("--text-tokens", type=int)
    args = parser.parse_args(arguments)
    shape = packaged_shape(args.shape)
    try:
        plan = find_plan(shape, args.rate, usual_request(shape, args.text_tokens), args.shape)
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    rows = list(describe_plan(plan).items())
    print_table(f"{args.shape} at {args.rate}", ("what", "left"), rows, numbers_from=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
