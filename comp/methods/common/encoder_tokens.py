"""Drop tokens of a CLIP or a BLIP by one strength: the problem, its solution, the plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from comp.adapter import FamilyAdapter, TokenKind
from comp.checkpoints.encoder_shape import EncoderShape
from comp.errors import CompExportError
from comp.flops.token_drops import dropped_macs
from comp.methods.common.stages import measured_at_once, plan_of_drops
from comp.plan import KEEP_UNIT, DropPlan, Merge, Place, Ranking, Workload, shares_of
from comp.search.bisection import nearest_strength
from comp.search.job import Outcome, PruningJob, agreed_workload, modes_of

TOLERANCE = 0.005  # of the rate
LEAST = KEEP_UNIT - 1  # most thousandths that may be dropped at a place


@dataclass(frozen=True)
class TokenProblem:
    """A dense encoder whose tokens are to be dropped until a rate is met.

    Attributes:
        shape: sizes of the model.
        modes: names of the modes of tokens.
        places: where tokens of these modes may be dropped, with their kind, in order.
        ranking, merge: the same at every place.
        rate: requested share of the FLOPs to remove.
    """

    adapter: FamilyAdapter
    shape: EncoderShape
    workload: Workload
    modes: tuple[str, ...]
    places: Mapping[Place, TokenKind]
    ranking: Ranking
    merge: Merge
    rate: float

    @property
    def dense_macs(self) -> int:
        return self.macs(())

    def macs(self, drops: tuple[DropPlan, ...]) -> int:
        """MACs left with these drops, including ranking and merging."""
        return sum(dropped_macs(self.shape, self.workload, drops).values())

    @property
    def strongest(self) -> int:
        """Strength at which one token is left at each place."""
        return LEAST * len(self.places)

    def rate_of(self, drops: tuple[DropPlan, ...]) -> float:
        return 1 - self.macs(drops) / self.dense_macs

    def drops(self, strength: int) -> tuple[DropPlan, ...]:
        """Return drops of the same ratio at every place: ``strength`` thousandths, spread over all places.

        The first places drop one more thousandth each, up to the remainder. Places that keep all tokens are
        left out.
        """
        share, more = divmod(strength, len(self.places))
        drops = []
        for number, place in enumerate(self.places):
            gone = share + (number < more)
            if gone == 0:
                continue
            drops.append(self.drop_at(place, (KEEP_UNIT - gone) / KEEP_UNIT))
        return tuple(drops)

    def drop_at(self, place: Place, ratio: float) -> DropPlan:
        """Drop that keeps this share of the tokens at a place."""
        kind = self.places[place]
        part, layer = place
        return DropPlan(
            part=part,
            after_layer=layer,
            vision_keep_ratio=ratio if kind == "vision" else 1.0,
            text_keep_ratio=ratio if kind == "text" else 1.0,
            ranking=self.ranking,
            merge=self.merge,
        )

    def strength(self) -> int:
        """Return the strength whose rate is nearest to the requested one.

        Raises:
            CompExportError: the rate is beyond the modes (names the largest reachable), or more than
                ``TOLERANCE`` away from every rate that they can reach.
        """
        rate, largest = self.rate, self.rate_of(self.drops(self.strongest))
        if rate > largest + TOLERANCE:
            raise CompExportError(
                f"rate {rate:g} is beyond what modes {', '.join(self.modes)} can reach on this model: "
                f"at most {int(100 * largest) / 100:.2f}; choose a smaller --rate"
            )
        nearest = nearest_strength(
            lambda tried: self.macs(self.drops(tried)),
            1,
            self.strongest,
            (1 - rate) * self.dense_macs,
        )
        reached = self.rate_of(self.drops(nearest))
        if abs(reached - rate) > TOLERANCE:
            raise CompExportError(
                f"rate {rate:g} falls between two keep ratios: modes {', '.join(self.modes)} reach "
                f"{reached:.4f} on texts of {self.workload.text_tokens} tokens; choose that --rate"
            )
        return nearest


def is_encoder(adapter: FamilyAdapter) -> bool:
    """Whether the model is a CLIP or a BLIP, whose tokens can be merged."""
    return isinstance(getattr(adapter, "shape", None), EncoderShape)


def token_problem(job: PruningJob, ranking: Ranking, merge: Merge) -> TokenProblem:
    """Return the token problem of a job.

    Raises:
        CompExportError: none of the modes is of tokens, or the model is no CLIP or BLIP.
    """
    adapter = job.adapter
    shape = getattr(adapter, "shape", None)
    if not isinstance(shape, EncoderShape):
        raise CompExportError(f"tokens of a {adapter.name} are not merged: choose another --method")
    modes = [mode for mode in modes_of(adapter, job.options.modes) if mode.tokens is not None]
    kinds = {mode.tokens for mode in modes}
    places = {
        place: at_place[0]
        for place, at_place in sorted(adapter.drop_places.items())
        if at_place[0] in kinds
    }
    if not places:
        raise CompExportError(
            f"modes {', '.join(job.options.modes)} drop no tokens of this model: name vision_tokens or "
            "language_tokens in --modes"
        )
    names = tuple(mode.name for mode in modes)
    workload, rate = agreed_workload(job), job.options.rate
    return TokenProblem(adapter, shape, workload, names, places, ranking, merge, rate)


def pruned_at_once(job: PruningJob, problem: TokenProblem, method: str) -> Outcome:
    """Solve for the drops that meet the rate, measure, and write one stage; nothing is trained."""
    drops = problem.drops(problem.strength())
    plan = plan_of_drops(job, problem.workload, drops, method)
    return measured_at_once(job, plan, "+".join(problem.modes), shares_of(drops))
