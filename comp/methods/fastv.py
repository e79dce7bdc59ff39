"""FastV: after two layers of 32, the image tokens that the last token attends to least go.

After Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (ECCV 2024).
"""

from comp.methods.common.decoder_tokens import early_place, prune_tokens, same_share
from comp.search.job import Outcome, PruningJob

METHOD = "fastv"


def prune(job: PruningJob) -> Outcome:
    """One place, one share, nothing trained; see ``comp.pipeline.steps.method``."""
    return prune_tokens(job, METHOD, same_share([early_place(job.adapter)], "mean_head"))
