"""Choose the mode to prune next: MPS, the multi-mode pruning strategy (Eq. 8, 9 and 10)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from comp.errors import CompExportError

CostMetric = Literal["accuracy", "loss"]
FAR_MORE = 2.0  # a stage that costs this many times another mode's known cost is undone


@dataclass(frozen=True)
class StrategyOptions:
    """Options of MPS; defaults are the paper's, except ``cost_metric``."""

    exploration: float = 0.2  # rho
    temperature: float = 5.0  # tau
    history: float = 0.4  # lambda_0
    max_interval: int = 5  # I_max
    cost_aware: bool = True  # CAS
    cost_metric: CostMetric = "loss"  # the quality that Eq. 8 compares
    undo: bool = False  # undo stages that cost far more than another mode, if nothing is trained

    def __post_init__(self) -> None:
        if self.cost_metric not in get_args(CostMetric):
            raise CompExportError(
                f"cost metric {self.cost_metric!r}: choose from {', '.join(get_args(CostMetric))}"
            )


@dataclass(frozen=True)
class ModeCost:
    """Running cost of a mode (``None``: unknown) and the last stage that ran it (0: none)."""

    cost: float | None = None
    last_stage: int = 0


def stage_cost(metric_before: float, metric_after: float, macs_share: float) -> float:
    """Metric lost per share of FLOPs removed (Eq. 8); lower is better, never below 0.

    The metric is higher for better models. With ``cost_metric`` ``loss`` it is minus the validation loss,
    and the cost is in nats per share of FLOPs. The scale does not matter: costs are only averaged and
    compared with each other.

    If the metric rose, training repaired the damage of an earlier mode. A negative cost would credit that
    to this mode, and the search would prune it to its end.
    """
    return max(0.0, metric_before - metric_after) / macs_share


def history_weight(options: StrategyOptions, interval: int) -> float:
    """Weight of history (Eq. 10): ``lambda = max(lambda_0 - (lambda_0 / I_max)(I_m - 1), 0)``."""
    return max(options.history - options.history / options.max_interval * (interval - 1), 0.0)


def updated_cost(options: StrategyOptions, old: ModeCost, stage: int, cost: float) -> ModeCost:
    """Running cost ``R_m <- lambda R_m + (1 - lambda) r``; the first one is ``r`` itself."""
    if old.cost is None:
        return ModeCost(cost, stage)
    weight = history_weight(options, stage - old.last_stage)
    return ModeCost(weight * old.cost + (1 - weight) * cost, stage)


def exploration_probabilities(
    options: StrategyOptions, costs: Sequence[ModeCost], stage: int
) -> list[float]:
    """Probabilities of exploration (Eq. 9): ``Softmax(I_m / tau)`` with ``I_m = T - T_m``."""
    weights = [math.exp((stage - cost.last_stage) / options.temperature) for cost in costs]
    return [weight / sum(weights) for weight in weights]


def choose_mode(
    options: StrategyOptions, costs: dict[str, ModeCost], stage: int, seed: int
) -> tuple[str, bool]:
    """Choose the mode of a stage (from 1); return it and whether exploration drew it.

    A mode that never ran comes before those with a cost. Without CAS the modes take turns. The draw
    depends on (seed, stage) alone, so that a resumed run repeats it.
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
    """Return the mode that a stage should have pruned instead, or ``None``. Not in the paper.

    Eq. 8 compares the costs of modes when they last ran, and exploration compares none.

    Args:
        costs: running costs of the modes that can still remove something.
        taken: the mode that the stage pruned.
        cost: its measured cost in this stage.
        undone: measured costs of the modes that were undone in this stage.
    """
    other_costs = {
        name: undone.get(name, other.cost)
        for name, other in costs.items()
        if name != taken and other.cost is not None
    }
    if not other_costs:
        return None
    best = min(other_costs, key=lambda name: other_costs[name])
    # A cost measured in this stage is certain; an older cost must be far lower to be worth a try.
    least = other_costs[best] if best in undone else FAR_MORE * other_costs[best]
    return best if cost > least else None


def _known(cost: ModeCost) -> float:
    return -math.inf if cost.cost is None else cost.cost
