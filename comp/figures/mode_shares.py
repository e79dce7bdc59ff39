"""Compute the share of FLOPs that each mode of a run removed, and that of finalising."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comp.errors import CompExportError
from comp.plan import PruningPlan

FINALISING = "finalising"
SAME_RATE = 1e-6  # rates of one run differ only by rounding


@dataclass(frozen=True)
class ModeShare:
    """MACs removed by one mode, or by finalising.

    Attributes:
        mode: name as in ``stages.jsonl``, or ``FINALISING``.
        stages: number of each stage that ran the mode, with the MACs that it removed.
        macs: their sum; for finalising, negative if it restored some.
        share: of all MACs that the plan removes; the shares of a run sum to 1.
    """

    mode: str
    stages: tuple[tuple[int, int], ...]
    macs: int
    share: float


def mode_shares(stages: Sequence[Mapping[str, Any]], plan: PruningPlan) -> tuple[ModeShare, ...]:
    """Shares of the FLOPs removed, in the order in which modes first ran; finalising is last.

    A mode gets the difference in MACs of its stages. Finalising rounds widths and keep ratios until the
    requested rate is met. Its difference, from the last stage's MACs to the plan's, belongs to no mode.

    Raises:
        CompExportError: the stages are not those of this plan, or the plan removes nothing.
    """
    removed = plan.macs_dense - plan.macs
    if removed <= 0:
        raise CompExportError("the plan removes no FLOPs, so that modes have no shares")
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
    removals = [(mode, tuple(parts)) for mode, parts in by_mode.items()]
    shares = []
    for mode, parts in removals:
        macs = sum(part for _, part in parts)
        shares.append(ModeShare(mode, parts, macs, macs / removed))
    moved = left - plan.macs
    return (*shares, ModeShare(FINALISING, (), moved, moved / removed))


def _rate_of(stage: Mapping[str, Any], plan: PruningPlan) -> float:
    """Rate of a stage recomputed with the plan's dense costs: of FLOPs, or of predicted time."""
    if plan.rate_of == "latency" and plan.milliseconds_dense:
        return 1 - stage["milliseconds"] / plan.milliseconds_dense
    return 1 - stage["macs"] / plan.macs_dense
