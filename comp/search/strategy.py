"""MPS: which mode to prune next (Eq. 8, 9 and 10)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from comp.errors import CompExportError

CostMetric = Literal["accuracy", "loss"]
FAR_MORE = 2.0  # times what another mode is known to cost: then the stage is undone


@dataclass(frozen=True)
class StrategyOptions:
    """Defaults are the paper's but for ``cost_metric``. The switches turn a part off altogether."""

    exploration: float = 0.2  # rho
    temperature: float = 5.0  # tau
    history: float = 0.4  # lambda_0
    max_interval: int = 5  # I_max
    cost_aware: bool = True  # CAS
    cost_metric: CostMetric = "loss"  # of which what is lost per FLOP is the cost
    undo: bool = False  # stages that cost far more than another mode, where nothing is trained

    def __post_init__(self) -> None:
        if self.cost_metric not in get_args(CostMetric):
            raise CompExportError(
                f"cost metric {self.cost_metric!r}: choose from {', '.join(get_args(CostMetric))}"
            )


@dataclass(frozen=True)
class ModeCost:
    """What is known of a mode: its running cost and the last stage that ran it (0: none)."""

    cost: float | None = None
    last_stage: int = 0


def stage_cost(metric_before: float, metric_after: float, macs_share: float) -> float:
    """Eq. 8: metric lost per share of FLOPs removed; lower is better, and never below 0.

    The metric rises as the model gets better: of the validation loss (``cost_metric``) it is minus the
    loss, and the cost is in nats per share of FLOPs instead of accuracy. The scale does not matter: costs
    are compared with each other alone, and history averages them.

    Where the metric rose, training made good what an earlier mode had broken. Booked as this mode's
    merit, it would have the search take this mode to its end.
    """
    return max(0.0, metric_before - metric_after) / macs_share


def history_weight(options: StrategyOptions, interval: int) -> float:
    """Eq. 10: ``lambda = max(lambda_0 - (lambda_0 / I_max)(I_m - 1), 0)``."""
    return max(options.history - options.history / options.max_interval * (interval - 1), 0.0)


def updated_cost(options: StrategyOptions, old: ModeCost, stage: int, cost: float) -> ModeCost:
    """``R_m <- lambda R_m + (1 - lambda) r``; the first measurement stands as it is."""
    if old.cost is None:
        return ModeCost(cost, stage)
    weight = history_weight(options, stage - old.last_stage)
    return ModeCost(weight * old.cost + (1 - weight) * cost, stage)


def exploration_probabilities(
    options: StrategyOptions, costs: Sequence[ModeCost], stage: int
) -> list[float]:
    """Eq. 9: ``Softmax(I_m / tau)`` with ``I_m = T - T_m``."""
    weights = [math.exp((stage - cost.last_stage) / options.temperature) for cost in costs]
    return [weight / sum(weights) for weight in weights]


def choose_mode(
    options: StrategyOptions, costs: dict[str, ModeCost], stage: int, seed: int
) -> tuple[str, bool]:
    """The mode of a stage (counted from 1), and whether it was drawn by exploration.

    A mode that never ran is tried before any cost is compared: its cost is unknown. Without CAS the
    modes take turns. The draw depends on (seed, stage) alone, so a resumed run repeats it.
    """
    names = list(costs)
    if not options.cost_aware:
        return min(names, key=lambda name: costs[name].last_stage), False
    rng = np.random.default_rng([seed, stage, 101])
    if rng.random() < options.exploration:
        chances = exploration_probabilities(options, [costs[name] for name in names], stage)
        return names[int(rng.choice(len(names), p=chances))], True
    return min(names, key=lambda name: _known(costs[name])), False


def better_mode(
    costs: dict[str, ModeCost], taken: str, cost: float, undone: dict[str, float]
) -> str | None:
    """The mode that a stage should have taken instead, or none. Ours, not the paper's.

    Eq. 8 compares what modes cost when they last ran; a draw of exploration compares nothing.

    Args:
        costs: running costs of the modes that can still remove something.
        taken: the mode that the stage took.
        cost: what it turned out to cost, of this stage alone.
        undone: what modes that were undone in this stage turned out to cost.
    """
    known = {
        name: undone.get(name, other.cost)
        for name, other in costs.items()
        if name != taken and other.cost is not None
    }
    if not known:
        return None
    best = min(known, key=lambda name: known[name])
    # What was measured is certain; what a mode cost before is worth a try only if it is far less.
    least = known[best] if best in undone else FAR_MORE * known[best]
    return best if cost > least else None


def _known(cost: ModeCost) -> float:
    return -math.inf if cost.cost is None else cost.cost
