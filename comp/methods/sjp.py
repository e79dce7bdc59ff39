"""Simple joint pruning: UPop for parameters and a token method, side by side and independent.

The baseline of CoMP's ablation. Parameters are pruned as in ``upop``; tokens as in ``pdrop`` on a LLaVA
and as in ``madtp`` on a CLIP or a BLIP.

Steps:

1. Split the rate: tokens leave ``sqrt(1 - rate)`` of the FLOPs, parameters the same share of the rest.
2. In every stage, advance both and train under masks and drops.
3. Fix the plan.

Prunes heads, FFN channels and tokens. Options: ``modes`` (of both kinds), ``stages``,
``steps_per_stage``, ``align``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from comp.methods import pdrop
from comp.methods.common.decoder_tokens import LEAST, MODE
from comp.methods.common.encoder_tokens import is_encoder, token_problem
from comp.methods.common.parameters import ParameterProblem, unchecked_problem
from comp.methods.madtp import check_learns, guided
from comp.methods.upop import Interval, prune_in
from comp.plan import KEEP_UNIT, Drops
from comp.search.bisection import first_strength, nearest_strength
from comp.search.job import REACHABLE_MARGIN, Outcome, PruningJob, modes_of, unreachable
from comp.search.stage import SearchState
from comp.tokens.dictionary import attach_dictionary

METHOD = "sjp"


def prune(job: PruningJob) -> Outcome:
    """Run UPop together with PyramidDrop or MADTP; see ``comp.registry.methods.Method.load``."""
    return prune_jointly(job, METHOD, simultaneous)


Course = Callable[[int, int], tuple[float | None, float]]
"""Progress of parameters and tokens, 0 to 1, at the end of a stage (its number from 1, and their count).

``None`` for parameters: their masks stay as they are.
"""


@dataclass(frozen=True)
class Tokens:
    """A token method with a strength: the higher it is, the more tokens are dropped.

    Attributes:
        modes: names of the token modes.
        weakest: the lowest strength at which every place drops tokens.
        strongest: the strength at which one token is left at each place.
        drops: returns the drops of a strength.
        training: returns the job with the method's own loss.
    """

    modes: tuple[str, ...]
    weakest: int
    strongest: int
    drops: Callable[[int], Drops]
    training: Callable[[PruningJob], PruningJob]


def prune_jointly(job: PruningJob, method: str, course: Course) -> Outcome:
    """Prune in the stages of a course; see ``comp.registry.methods.Method.load``."""
    tokens = tokens_of(job, method)
    problem = unchecked_problem(job)
    strength = agreed_strength(job, problem, tokens)
    problem = replace(problem, drops=tokens.drops(strength))
    torch.manual_seed(job.options.seed)  # a dictionary's entries start at random
    attach_dictionary(job.adapter.model, problem.drops)
    intervals = list(_intervals(job, problem, tokens, strength, course))
    return prune_in(job, problem, intervals, method)


def tokens_of(job: PruningJob, method: str) -> Tokens:
    """Return the token method of this family.

    Raises:
        CompExportError: it cannot prune with these modes, or without training steps.
    """
    if is_encoder(job.adapter):
        problem = token_problem(job, "aligned", "one")
        check_learns(job, problem, method)
        return Tokens(problem.modes, len(problem.places), problem.strongest, problem.drops, guided)
    drops_at = pdrop.drops_of(job.adapter)

    def drops(gone: int) -> Drops:
        return drops_at((KEEP_UNIT - gone) / KEEP_UNIT)

    return Tokens((MODE,), 1, LEAST, drops, lambda same: same)


def agreed_strength(job: PruningJob, problem: ParameterProblem, tokens: Tokens) -> int:
    """Return the strength of the token method, such that parameters can remove the rest.

    Raises:
        CompExportError: both together cannot reach the rate (names the largest reachable one).
    """
    state = SearchState(problem.whole().masks)
    least = problem.search.least_counts(state, problem.modes)
    split = Split(
        dense=problem.dense_macs,
        whole=lambda strength: problem.macs(drops=tokens.drops(strength)),
        least=lambda strength: problem.macs(least, tokens.drops(strength)),
        strengths=(tokens.weakest, tokens.strongest),
    )
    rate = job.options.rate
    if rate > split.largest_rate:
        usable = [mode for mode in job.adapter.modes if mode.part or mode.name in tokens.modes]
        modes = [mode for mode in modes_of(job.adapter, job.options.modes) if mode in usable]
        raise unreachable(rate, split.largest_rate, modes, usable)
    return split.strength(rate)


@dataclass(frozen=True)
class Split:
    """Split of the FLOPs to remove between tokens and parameters.

    Attributes:
        dense: MACs of the dense model.
        whole: MACs left at a strength of the token method, with all parameters.
        least: MACs left at a strength, with the fewest parameters.
        strengths: the weakest and the strongest.
    """

    dense: int
    whole: Callable[[int], int]
    least: Callable[[int], int]
    strengths: tuple[int, int]

    @property
    def largest_rate(self) -> float:
        """Largest rate that tokens and parameters can reach together."""
        return 1 - self.least(self.strengths[1]) / self.dense - REACHABLE_MARGIN

    def strength(self, rate: float) -> int:
        """Return the strength of the even split: both factors of the FLOPs left are ``sqrt(1 - rate)``.

        If tokens alone cannot remove their half, they remove as much as they can. If parameters cannot
        remove the rest, the strength rises as far as needed.
        """
        even = nearest_strength(self.whole, *self.strengths, math.sqrt(1 - rate) * self.dense)
        needed = (1 - rate - REACHABLE_MARGIN) * self.dense
        return max(even, first_strength(self.least, *self.strengths, needed))


def simultaneous(stage: int, stages: int) -> tuple[float | None, float]:
    """Course that advances parameters and tokens in every stage."""
    return stage / stages, stage / stages


def sequential(stage: int, stages: int) -> tuple[float | None, float]:
    """Course with parameters in the first half of the stages (the larger one), then tokens."""
    first = stages - stages // 2
    if stage <= first:
        return stage / first, 0.0
    return None, (stage - first) / (stages - first)


def _intervals(
    job: PruningJob, problem: ParameterProblem, tokens: Tokens, strength: int, course: Course
) -> Iterator[Interval]:
    """Yield the interval of each stage; the strength of the tokens rises evenly over their stages."""
    stages = job.options.stages
    for stage in range(1, stages + 1):
        parameters, gone = course(stage, stages)
        names = [mode.name for mode in problem.modes] if parameters is not None else []
        if gone == 0:
            yield Interval("+".join(names), parameters)
            continue
        drops = tokens.drops(max(tokens.weakest, round(gone * strength)))
        yield Interval("+".join([*tokens.modes, *names]), parameters, drops, tokens.training)
