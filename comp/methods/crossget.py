"""CrossGET: merge the same number of tokens in every block, matched over the complete graph.

Paper: Shi et al., "CrossGET: Cross-Guided Ensemble of Tokens for Accelerating Vision-Language Transformers"
(ICML 2024). Without its learned cross tokens: [CLS], or the end of text, is the guide.

Steps: solve for the number of tokens that meets the rate, then measure once. Nothing is trained.

Prunes the tokens of a CLIP, in every block of the modes. Options: ``modes``.
"""

from dataclasses import dataclass
from itertools import groupby

from comp.methods.common.encoder_tokens import TokenProblem, pruned_at_once, token_problem
from comp.plan import KEEP_UNIT, DropPlan
from comp.search.job import Outcome, PruningJob

METHOD = "crossget"
LEAST_LEFT = 2  # tokens: the one that always stays, and one that the others are merged into


@dataclass(frozen=True)
class EvenTokenProblem(TokenProblem):
    """A token problem in which every place of a part loses the same number of tokens."""

    def drops(self, strength: int) -> tuple[DropPlan, ...]:
        """Drop ``strength`` thousandths of a part's tokens, spread evenly over its places.

        A remainder is one more token at some places. At least ``LEAST_LEFT`` tokens stay.
        """
        drops = []
        # Share dropped at each place, of the tokens that enter the part.
        share = strength / len(self.places) / KEEP_UNIT
        for part, places in groupby(self.places, key=lambda place: place[0]):
            entered = self.workload.text_tokens
            if part == "vision":
                entered = self.shape.vision.tokens
            left = entered
            for number, place in enumerate(places, start=1):
                before = left
                wanted = entered - round(number * share * entered)
                left = min(before, max(LEAST_LEFT, wanted))
                if left == before:
                    continue
                # The ratio in thousandths with ceil(ratio · before) == left.
                ratio = KEEP_UNIT * left // before / KEEP_UNIT
                drops.append(self.drop_at(place, ratio))
        return tuple(drops)


def prune(job: PruningJob) -> Outcome:
    """Solve for the number of tokens to drop at each place; see ``comp.registry.methods.Method.load``."""
    problem = EvenTokenProblem(**vars(token_problem(job, "matched", "proportional")))
    return pruned_at_once(job, problem, METHOD)
