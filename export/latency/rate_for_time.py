"""How much of a model has to go until a request takes no longer than asked, by a latency table.

What a search will cut is not known before it ran, but its time is: `prune --cost latency` ends at the share
of the time that it is asked for. Here a plan of its kind is made up, cut in step in everything that may
be cut, to see whether the time can be reached and to measure it before anything is trained.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from comp.errors import CompExportError
from comp.latency.table import LatencyTable
from comp.plan import KEEP_UNIT, Part, PruningPlan, Workload
from export.latency.blocks import Blocks
from export.latency.held_out import DENSE, Model, predicted

STEPS = 1000  # the strengths that are tried: 0, 1/1000, …, 1
# What is left at strength 1: of heads and channels, and behind the last place of the tokens.
LEAST_WIDTH, LEAST_IMAGE, LEAST_TEXT = 0.1, 0.03, 0.3
METHOD = "plan"
DROPPABLE = 0.5  # stands for a ratio that may be below 1
CUT: dict[Part, str] = {"vision": "vision_parameters", "language": "language_parameters"}


@dataclass(frozen=True)
class Planned:
    """A made-up plan and its time.

    Attributes:
        dense_ms, plan_ms: predicted by the table, as it stands.
        mean_error: of the table's predictions of models it was not made from, a share of the measured time.
        errors: the lowest and the highest of those.
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
        """What measuring should show: the prediction without the table's mean error."""
        return self.plan_ms / (1 + self.mean_error)

    @property
    def range_ms(self) -> tuple[float, float]:
        """As ``expected_ms``, were the error the highest or the lowest that the table has shown."""
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
    """The weakest made-up plan that should take ``target_ms`` at most.

    Args:
        blocks: of the dense model that the table is of.
        modes: what may be cut, by long names.
        on: the request whose time is meant.
        align: channels stay in multiples of it.
        target_ms: to the first token, or of a CLIP of both embeddings; preparing the image left out.

    Raises:
        CompExportError: the dense model is as fast as that, or no plan of these modes is.
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
    """A plan that leaves each block alike and drops alike at each place; 0 leaves all, 1 the least."""

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
    count = Counter(drop.part for drop in places)  # a CLIP's parts have places of their own each
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
    """What each of so many places keeps, in whole thousandths, for a share to be left behind the last."""
    return round(KEEP_UNIT * share ** (1 / places)) / KEEP_UNIT if may == DROPPABLE else 1.0
