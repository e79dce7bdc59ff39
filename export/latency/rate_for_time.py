"""Find the rate at which a request meets a target time, by a latency table.

The cut of a search is unknown before it runs, but not its time: `prune --cost latency` ends at the requested
share of time. This module sketches a plan of that time, cut in proportion in all modes. The plan shows
whether the target can be met, and its time can be measured before any training.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from comp.errors import CompExportError
from comp.latency.table import LatencyTable
from comp.plan import KEEP_UNIT, Part, PruningPlan, Workload
from export.latency.blocks import Blocks
from export.latency.held_out import DENSE, Model, predicted

STEPS = 1000  # the strengths to try: 0, 1/1000, …, 1
# Shares left at strength 1: of heads and channels, and of tokens after the last drop.
LEAST_WIDTH, LEAST_IMAGE, LEAST_TEXT = 0.1, 0.03, 0.3
METHOD = "plan"
DROPPABLE = 0.5  # stands for a ratio that may be below 1
CUT: dict[Part, str] = {"vision": "vision_parameters", "language": "language_parameters"}


@dataclass(frozen=True)
class Planned:
    """A sketched plan and its predicted time.

    Attributes:
        dense_ms, plan_ms: predicted by the table, uncorrected.
        mean_error: mean error of the table's predictions on held-out models, relative to the measured time.
        errors: the lowest and the highest of those errors.
        on: the request.
    """

    plan: PruningPlan
    dense_ms: float
    plan_ms: float
    mean_error: float
    errors: tuple[float, float]
    on: Workload

    @property
    def rate(self) -> float:
        """Share of the time to remove, as `prune --cost latency --rate` takes it."""
        return 1 - self.plan_ms / self.dense_ms

    @property
    def expected_ms(self) -> float:
        """The expected measurement: the prediction corrected by the table's mean error."""
        return self.plan_ms / (1 + self.mean_error)

    @property
    def range_ms(self) -> tuple[float, float]:
        """As ``expected_ms``, for the highest and the lowest error of the table."""
        low, high = self.errors
        return self.plan_ms / (1 + high), self.plan_ms / (1 + low)


def plan_for(
    blocks: Blocks,
    table: LatencyTable,
    modes: Sequence[str],
    on: Workload,
    align: int,
    target_ms: float,
) -> Planned:
    """Find the weakest sketched plan that is expected to take at most ``target_ms``.

    Args:
        blocks: blocks of the dense model that the table was measured on.
        modes: what may be cut, by long names.
        on: the request to predict.
        align: channels are kept in multiples of it.
        target_ms: to the first token, or for a CLIP to both embeddings, without preparing the image.

    Raises:
        CompExportError: the dense model is fast enough, or no plan with these modes is.
    """
    checked = [each.error for each in table.held_out if each.name != DENSE]
    errors = checked or [0.0]
    mean = sum(errors) / len(errors)

    def at(step: int) -> Planned:
        plan = sketched(blocks, modes, step / STEPS, align)
        dense_ms, plan_ms = (
            predicted(table, Model("", each, on)) for each in (None, plan if step else None)
        )
        return Planned(plan, dense_ms, plan_ms, mean, (min(errors), max(errors)), on)

    none, all_of_it = at(0), at(STEPS)
    if none.expected_ms <= target_ms:
        raise CompExportError(
            f"--target-ms {target_ms:g}: the dense model should take {none.expected_ms:.2f} ms already; "
            "nothing has to go"
        )
    if all_of_it.expected_ms > target_ms:
        raise CompExportError(
            f"--target-ms {target_ms:g}: with {', '.join(modes)} the least is "
            f"{all_of_it.expected_ms:.2f} ms, of {none.expected_ms:.2f} dense; allow more --modes or time"
        )
    weak, strong = 0, STEPS  # times never rise with the strength, up to rounding of widths
    while strong - weak > 1:
        middle = (weak + strong) // 2
        if at(middle).expected_ms <= target_ms:
            strong = middle
        else:
            weak = middle
    return at(strong)


def sketched(blocks: Blocks, modes: Sequence[str], strength: float, align: int) -> PruningPlan:
    """A plan that cuts all blocks and drops at all places in proportion; strength 0 keeps all."""

    def left(least: float) -> float:
        return 1 - strength * (1 - least)

    sizes: dict[Part, list[tuple[int, int]]] = {"vision": [], "language": []}
    for block in blocks.dense_blocks():
        share = left(LEAST_WIDTH) if CUT[block.part] in modes else 1.0
        units = max(1, round(share * block.channels / align))
        channels = block.channels if share == 1 else min(block.channels, units * align)
        sizes[block.part].append((max(1, round(share * block.heads)), channels))
    image = left(LEAST_IMAGE) if "vision_tokens" in modes else 1.0
    text = left(LEAST_TEXT) if "language_tokens" in modes else 1.0
    places = blocks.drops(lambda: DROPPABLE)
    count = Counter(drop.part for drop in places)  # each part of a CLIP has its own places
    drops = [
        drop.model_copy(
            update={
                "vision_keep_ratio": _each(drop.vision_keep_ratio, image, count[drop.part]),
                "text_keep_ratio": _each(drop.text_keep_ratio, text, count[drop.part]),
            }
        )
        for drop in places
    ]
    dropping = [drop for drop in drops if drop.shares != (1, 1)]
    return blocks.cut(sizes, tuple(dropping)).model_copy(update={"method": METHOD})


def _each(may: float, share: float, places: int) -> float:
    """The keep ratio of each of ``places`` drops, in thousandths, that leaves ``share`` after the last."""
    return round(KEEP_UNIT * share ** (1 / places)) / KEEP_UNIT if may == DROPPABLE else 1.0
