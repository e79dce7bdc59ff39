"""Which mode removed how much: the FLOPs of a run's stages, added up by mode, and of finalising."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comp.errors import CompExportError
from comp.plan import PruningPlan

FINALISING = "finalising"
SAME_RATE = 1e-6  # rates of one run differ by rounding alone


@dataclass(frozen=True)
class ModeShare:
    """What one mode removed, or finalising.

    Attributes:
        mode: its name as in ``stages.jsonl``, or ``FINALISING``.
        stages: for each stage that it ran, the stage's number and the MACs that this stage removed.
        macs: their sum; of finalising what it removed, negative where it gave back.
        share: of all that the plan removes; the shares of a run add up to 1.
    """

    mode: str
    stages: tuple[tuple[int, int], ...]
    macs: int
    share: float


def mode_shares(stages: Sequence[Mapping[str, Any]], plan: PruningPlan) -> tuple[ModeShare, ...]:
    """Shares of the FLOPs removed, in the order in which modes first ran; finalising is the last.

    A stage's MACs less those of the stage before are its mode's. What finalising moves, rounding widths to
    whole multiples and keep ratios to thousandths until the rate is the asked one, belongs to no
    mode: it is the last stage's MACs less the plan's.

    Raises:
        CompExportError: the stages are not those of this plan, or the plan removes nothing.
    """
    removed = plan.macs_dense - plan.macs
    if removed <= 0:
        raise CompExportError("the plan removes no FLOPs, of which modes could have shares")
    by_mode: dict[str, list[tuple[int, int]]] = {}
    left = plan.macs_dense
    for stage in stages:
        if abs(_rate_of(stage, plan) - stage["rate"]) > SAME_RATE:
            raise CompExportError(
                f"stage {stage['stage']} of stages.jsonl leaves {stage['macs']:,} MACs at rate "
                f"{stage['rate']:.4f}, which is not of a model with the plan's {plan.macs_dense:,}: the "
                "files are of different runs; prune again with --force"
            )
        by_mode.setdefault(stage["mode"], []).append((stage["stage"], left - stage["macs"]))
        left = stage["macs"]
    found = [(mode, tuple(parts)) for mode, parts in by_mode.items()]
    shares = []
    for mode, parts in found:
        macs = sum(part for _, part in parts)
        shares.append(ModeShare(mode, parts, macs, macs / removed))
    moved = left - plan.macs
    return (*shares, ModeShare(FINALISING, (), moved, moved / removed))


def _rate_of(stage: Mapping[str, Any], plan: PruningPlan) -> float:
    """What the stage's rate is if it is of this plan: of FLOPs, or of predicted time."""
    if plan.rate_of == "latency" and plan.milliseconds_dense:
        return 1 - stage["milliseconds"] / plan.milliseconds_dense
    return 1 - stage["macs"] / plan.macs_dense
