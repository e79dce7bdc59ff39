"""CrossGET: in every block the same number of tokens goes, matched over the complete graph and merged.

After Shi et al., "CrossGET: Cross-Guided Ensemble of Tokens for Accelerating Vision-Language Transformers"
(ICML 2024), without its learned cross tokens: [CLS], or the end of text, guides instead, and nothing is
trained.
"""

from dataclasses import dataclass
from itertools import groupby

from comp.methods.common.encoder_tokens import TokenProblem, pruned_at_once, token_problem
from comp.plan import KEEP_UNIT, DropPlan
from comp.search.job import Outcome, PruningJob

METHOD = "crossget"
LEAST_LEFT = 2


@dataclass(frozen=True)
class EvenTokenProblem(TokenProblem):
    """A ground on which every place of a part loses as many tokens as every other."""

    def drops(self, strength: int) -> tuple[DropPlan, ...]:
        """``strength`` thousandths of a part's tokens go over all places, as many at each.

        What does not divide is one token more at some. The token that always stays and one more, which
        takes the others in, are left whatever the strength.
        """
        found = []
        share = (
            strength / len(self.places) / KEEP_UNIT
        )  # of the tokens that enter a part, at a place
        for part, places in groupby(self.places.items(), key=lambda item: item[0][0]):
            entered = self.workload.text_tokens
            if part == "vision":
                entered = self.shape.vision.tokens
            left = entered
            for number, ((_, layer), kind) in enumerate(places, start=1):
                before = left
                wanted = entered - round(number * share * entered)
                left = min(before, max(LEAST_LEFT, wanted))
                if left == before:
                    continue
                # The ratio in thousandths of which ceil(ratio · before) is what is left.
                ratio = KEEP_UNIT * left // before / KEEP_UNIT
                found.append(
                    DropPlan(
                        part=part,
                        after_layer=layer,
                        vision_keep_ratio=ratio if kind == "vision" else 1.0,
                        text_keep_ratio=ratio if kind == "text" else 1.0,
                        ranking=self.ranking,
                        merge=self.merge,
                    )
                )
        return tuple(found)


def prune(job: PruningJob) -> Outcome:
    """Solve for how many go at every place; see ``comp.pipeline.steps.method``."""
    problem = EvenTokenProblem(**vars(token_problem(job, "matched", "proportional")))
    return pruned_at_once(job, problem, METHOD)
