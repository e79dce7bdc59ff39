"""PyramidDrop: keep the same share of image tokens at a quarter, half and three quarters of the depth.

Paper: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction" (CVPR 2025).

Steps: solve for the keep ratio that meets the rate, then measure once. Tokens are ranked by the
attention of the last token in the next block. Nothing is trained.

Prunes the image tokens of a LLaVA at three places. No options of its own.
"""

from collections.abc import Callable

from comp.adapter import FamilyAdapter
from comp.methods.common.decoder_tokens import prune_tokens, same_share
from comp.plan import Drops
from comp.search.job import Outcome, PruningJob

METHOD = "pdrop"


def prune(job: PruningJob) -> Outcome:
    """Solve for the keep ratio of all places; see ``comp.registry.methods.Method.load``."""
    return prune_tokens(job, METHOD, drops_of(job.adapter))


def drops_of(adapter: FamilyAdapter) -> Callable[[float], Drops]:
    """Return the drops as a function of the keep ratio, the same at every place."""
    return same_share(sorted(after for _, after in adapter.drop_places), "next_layer")
