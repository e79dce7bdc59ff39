"""Simple joint pruning: parameters and tokens advance in every stage, neither knowing of the other."""

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
    """UPop beside PyramidDrop or MADTP; see ``comp.pipeline.steps.method``."""
    return prune_jointly(job, METHOD, simultaneous)


Course = Callable[[int, int], tuple[float | None, float]]
"""Of a stage, from 1, and of how many: how far parameters and tokens have come at its end.

From 0 to 1; none: parameters rest, and their masks with them.
"""


@dataclass(frozen=True)
class Tokens:
    """How tokens go, the more the higher the strength.

    Attributes:
        modes: of tokens that are dropped.
        weakest, strongest: strengths at which every place drops, and at which one token a place is left.
        drops: those of a strength.
        training: the job as it trains with drops.
    """

    modes: tuple[str, ...]
    weakest: int
    strongest: int
    drops: Callable[[int], Drops]
    training: Callable[[PruningJob], PruningJob]


def prune_jointly(job: PruningJob, method: str, course: Course) -> Outcome:
    """Prune in the stages of a course; see ``comp.pipeline.steps.method``."""
    tokens = tokens_of(job, method)
    problem = unchecked_problem(job)
    strength = agreed_strength(job, problem, tokens)
    problem = replace(problem, drops=tokens.drops(strength))
    torch.manual_seed(job.options.seed)  # a dictionary's entries start at random
    attach_dictionary(job.adapter.model, problem.drops)
    intervals = list(_intervals(job, problem, tokens, strength, course))
    return prune_in(job, problem, intervals, method)


def tokens_of(job: PruningJob, method: str) -> Tokens:
    """The rule for the tokens of this family.

    Raises:
        CompExportError: they cannot be pruned by it with these modes or without steps.
    """
    if is_encoder(job.adapter):
        found = token_problem(job, "aligned", "one")
        check_learns(job, found, method)
        return Tokens(found.modes, len(found.places), found.strongest, found.drops, guided)
    drops_at = pdrop.drops_of(job.adapter)

    def drops(gone: int) -> Drops:
        return drops_at((KEEP_UNIT - gone) / KEEP_UNIT)

    return Tokens((MODE,), 1, LEAST, drops, lambda same: same)


def agreed_strength(job: PruningJob, problem: ParameterProblem, tokens: Tokens) -> int:
    """How strongly tokens are to go, so that parameters can take the rest.

    Raises:
        CompExportError: both together cannot reach the rate (names the largest that they can).
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
    """How the FLOPs to remove are shared out between tokens and parameters.

    Attributes:
        dense: MACs of the whole model.
        whole: MACs left at a strength of the tokens with all parameters.
        least: with the fewest parameters.
        strengths: the weakest and the strongest.
    """

    dense: int
    whole: Callable[[int], int]
    least: Callable[[int], int]
    strengths: tuple[int, int]

    @property
    def largest_rate(self) -> float:
        """That both can reach together."""
        return 1 - self.least(self.strengths[1]) / self.dense - REACHABLE_MARGIN

    def strength(self, rate: float) -> int:
        """The even split: tokens leave ``sqrt(1 - rate)`` of the FLOPs, parameters as much of these.

        Where tokens cannot leave as few, they leave the fewest they can; where parameters cannot, tokens
        go as strongly as it takes.
        """
        even = nearest_strength(self.whole, *self.strengths, math.sqrt(1 - rate) * self.dense)
        needed = (1 - rate - REACHABLE_MARGIN) * self.dense
        return max(even, first_strength(self.least, *self.strengths, needed))


def simultaneous(stage: int, stages: int) -> tuple[float | None, float]:
    """Parameters and tokens in every stage."""
    return stage / stages, stage / stages


def sequential(stage: int, stages: int) -> tuple[float | None, float]:
    """Parameters in the first half of the stages, of an odd number the larger one; then tokens."""
    first = stages - stages // 2
    if stage <= first:
        return stage / first, 0.0
    return None, (stage - first) / (stages - first)


def _intervals(
    job: PruningJob, problem: ParameterProblem, tokens: Tokens, strength: int, course: Course
) -> Iterator[Interval]:
    """What each stage does; the strength of the tokens rises evenly over theirs."""
    stages = job.options.stages
    for stage in range(1, stages + 1):
        parameters, gone = course(stage, stages)
        names = [mode.name for mode in problem.modes] if parameters is not None else []
        if gone == 0:
            yield Interval("+".join(names), parameters)
            continue
        drops = tokens.drops(max(tokens.weakest, round(gone * strength)))
        yield Interval("+".join([*tokens.modes, *names]), parameters, drops, tokens.training)
