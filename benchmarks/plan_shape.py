"""A plan of CoMP's kind for a shape and a rate, without a search on data.

    python benchmarks/plan_shape.py --shape llava-7b --rate 0.62

Heads, FFN channels and tokens are removed together, deeper blocks lose more, tokens are dropped at the
three places that ``comp-export prune`` uses. Which head or channel is removed does not matter for speed,
so they are drawn at random. The same shape, rate and seed give the same plan.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.shapes import Stack
from comp.errors import CompExportError
from comp.flops.llava import keep_ratios, llava_macs_of_counts
from comp.plan import KEEP_UNIT, BlockPlan, DropPlan, Part, PruningPlan, Workload
from comp.utils.console import print_table, say
from random_llava import SHAPES, config_of

ALIGN = 64  # channels: whole tiles of a matrix product, as `prune` keeps them in large models
STEPS = 1000  # the strengths to try: 0, 1/1000, …, 1

# Shares removed at strength 1.
WIDTH_CUT = 0.5  # of heads and channels, on average over the blocks
SLOPE = 0.3  # the first block loses this share less than the average, the last this share more
IMAGE_CUT, TEXT_CUT = 0.7, 0.3  # of the tokens that reach a place


@dataclass(frozen=True)
class Widths:
    """KV heads and channels left in each block."""

    language: tuple[tuple[int, int], ...]
    vision: tuple[tuple[int, int], ...]


def find_plan(
    shape: ModelShape,
    rate: float,
    workload: Workload,
    model: str,
    tower: bool = False,
    seed: int = 0,
) -> PruningPlan:
    """Find the plan whose rate, counted by ``comp.flops.llava``, is nearest to ``rate``.

    One strength cuts everything in proportion; then, with the widths fixed, only the strength of token
    dropping is adjusted, because widths change in coarse steps.

    Args:
        shape: sizes of the dense model.
        rate: share of the whole model's multiply-accumulates to remove, on ``workload``.
        workload: one prompt.
        model: name to record.
        tower: also cut the vision tower's heads and channels.
        seed: seed of the choice of heads and channels.

    Raises:
        CompExportError: this kind of plan does not reach the rate.
    """
    dense = macs_of(shape, widths_of(shape, 0, tower), (), workload)
    target = (1 - rate) * dense

    def cost(width_step: int, token_step: int) -> int:
        widths = widths_of(shape, width_step, tower)
        return macs_of(shape, widths, drops_of(shape, token_step), workload)

    least = cost(STEPS, STEPS)
    if not 0 < rate < 1 or least > target:
        raise CompExportError(
            f"--rate {rate}: this kind of plan removes up to {1 - least / dense:.2f}"
            + ("" if tower else "; add --tower for more")
        )
    width_step = _last_above([cost(step, step) for step in range(STEPS + 1)], target)
    costs = [cost(width_step, step) for step in range(STEPS + 1)]
    token_step = min(range(STEPS + 1), key=lambda step: abs(costs[step] - target))
    widths, drops = widths_of(shape, width_step, tower), drops_of(shape, token_step)
    macs = macs_of(shape, widths, drops, workload)
    return PruningPlan(
        family="llava",
        model=model,
        method="plan_shape",
        rate=1 - macs / dense,
        workload=workload,
        macs_dense=dense,
        macs=macs,
        blocks=_blocks(shape, widths, seed),
        drops=drops,
    )


def widths_of(shape: ModelShape, step: int, tower: bool) -> Widths:
    """Heads and channels left at strength ``step / STEPS``."""
    language = tuple(
        _cut(heads, channels, step, slope)
        for (heads, channels), slope in zip(
            _sizes(shape.text), np.linspace(-SLOPE, SLOPE, shape.num_layers), strict=True
        )
    )
    used = shape.vision_used_layers if tower else 0
    vision = tuple(
        _cut(heads, channels, step if number < used else 0, 0.0)
        for number, (heads, channels) in enumerate(_sizes(shape.vision))
    )
    return Widths(language, vision)


def _sizes(stack: Stack) -> list[tuple[int, int]]:
    return [(block.heads, block.channels) for block in stack.blocks]


def _cut(heads: int, channels: int, step: int, slope: float) -> tuple[int, int]:
    share = 1 - WIDTH_CUT * (1 + slope) * step / STEPS
    left = channels if step == 0 else max(ALIGN, round(share * channels / ALIGN) * ALIGN)
    return max(1, round(share * heads)), min(channels, left)


def drops_of(shape: ModelShape, step: int) -> tuple[DropPlan, ...]:
    """The drops at strength ``step / STEPS``; keep ratios in whole thousandths."""
    if step == 0:
        return ()
    image, text = (
        round(KEEP_UNIT * (1 - cut * step / STEPS)) / KEEP_UNIT for cut in (IMAGE_CUT, TEXT_CUT)
    )
    return tuple(
        DropPlan(after_layer=place, vision_keep_ratio=image, text_keep_ratio=text)
        for place in shape.drop_layers
    )


def macs_of(
    shape: ModelShape, widths: Widths, drops: tuple[DropPlan, ...], workload: Workload
) -> int:
    """Multiply-accumulates of one prompt."""
    blocks: dict[tuple[Part, int], tuple[int, int]] = {
        **{("language", number): block for number, block in enumerate(widths.language)},
        **{("vision", number): block for number, block in enumerate(widths.vision)},
    }
    heads = {key: block[0] for key, block in blocks.items()}
    channels = {key: block[1] for key, block in blocks.items()}
    return llava_macs_of_counts(shape, heads, channels, keep_ratios(drops), workload)


def _last_above(costs: Sequence[int], target: float) -> int:
    """The largest step whose cost is not below the target; costs fall with the step."""
    return max(step for step, cost in enumerate(costs) if cost >= target)


def _blocks(shape: ModelShape, widths: Widths, seed: int) -> tuple[BlockPlan, ...]:
    blocks = []
    parts: tuple[tuple[Part, Stack, Sequence[tuple[int, int]]], ...] = (
        ("language", shape.text, widths.language),
        ("vision", shape.vision, widths.vision),
    )
    for code, (part, stack, left) in enumerate(parts):
        for index, (kept_heads, kept_channels) in enumerate(left):
            block = stack.blocks[index]
            rng = np.random.default_rng([seed, code, index])
            blocks.append(
                BlockPlan(
                    part=part,
                    index=index,
                    num_attention_heads=block.heads * stack.group_size,
                    num_key_value_heads=block.heads,
                    intermediate_size=block.channels,
                    kept_key_value_heads=_drawn(rng, block.heads, kept_heads),
                    kept_channels=_drawn(rng, block.channels, kept_channels),
                )
            )
    return tuple(blocks)


def _drawn(rng: np.random.Generator, count: int, kept: int) -> tuple[int, ...]:
    return tuple(sorted(int(place) for place in rng.permutation(count)[:kept]))


def describe_plan(plan: PruningPlan) -> dict[str, object]:
    """Describe what the plan keeps, block by block, for reports."""
    described: dict[str, object] = {
        "rate": plan.rate,
        "drops": [drop.model_dump() for drop in plan.drops],
    }
    for part in ("language", "vision"):
        blocks = plan.part(part)
        described[f"{part}_heads"] = [len(block.kept_heads) for block in blocks]
        described[f"{part}_channels"] = [len(block.kept_channels) for block in blocks]
    return described


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show the plan for a shape and a rate.")
    parser.add_argument("--shape", choices=SHAPES, default="llava-7b")
    parser.add_argument("--rate", type=float, default=0.62)
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--tower", action="store_true", help="also cut the vision tower")
    parser.add_argument("--out", type=Path, help="write the plan there, for `comp-export cut`")
    args = parser.parse_args(arguments)
    shape = ModelShape.from_config(config_of(args.shape))
    workload = Workload(image_tokens=shape.image_tokens, text_tokens=args.text_tokens)
    try:
        plan = find_plan(shape, args.rate, workload, args.shape, args.tower)
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    if args.out is not None:
        plan.save(args.out)
    rows = [(name, value) for name, value in describe_plan(plan).items() if name != "drops"]
    for drop in plan.drops:
        kept = f"image tokens {drop.vision_keep_ratio}, text tokens {drop.text_keep_ratio}"
        rows.append((f"after block {drop.after_layer}", kept))
    print_table(f"{args.shape} at {args.rate}", ("what", "left"), rows, numbers_from=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
