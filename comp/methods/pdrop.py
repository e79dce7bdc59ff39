"""PyramidDrop: the same share of the image tokens stays at a quarter, half and three quarters of the depth.

After Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction" (CVPR 2025).
"""

from collections.abc import Callable

from comp.adapter import FamilyAdapter
from comp.methods.common.decoder_tokens import prune_tokens, same_share
from comp.plan import Drops
from comp.search.job import Outcome, PruningJob

METHOD = "pdrop"


def prune(job: PruningJob) -> Outcome:
    """One share for all of CoMP's places, which are PyramidDrop's; nothing is trained here."""
    return prune_tokens(job, METHOD, drops_of(job.adapter))


def drops_of(adapter: FamilyAdapter) -> Callable[[float], Drops]:
    """Its drops by the share that stays at every place."""
    return same_share(sorted(after for _, after in adapter.drop_places), "next_layer")
