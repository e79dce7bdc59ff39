"""PyramidDrop: the same share of the image tokens stays at a quarter, half and three quarters of the depth.

After Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction" (CVPR 2025).
"""

from comp.methods.base import Job, Outcome
from comp.token_plans import prune_tokens, same_share

METHOD = "pdrop"


def prune(job: Job) -> Outcome:
    """One share for all of CoMP's places, which are PyramidDrop's; nothing is trained here."""
    places = sorted(after for _, after in job.adapter.drop_places)
    return prune_tokens(job, METHOD, same_share(places, "next_layer"))
