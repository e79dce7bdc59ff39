"""FastV: drop the image tokens that the last token attends to least, after two layers of 32.

Paper: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (ECCV 2024).

Steps: solve for the keep ratio that meets the rate, then measure once. Tokens are ranked by
``comp.importance.decoder_rankings.mean_attention``. Nothing is trained.

Prunes the image tokens of a LLaVA at one place. No options of its own.
"""

from comp.methods.common.decoder_tokens import early_place, prune_tokens, same_share
from comp.search.job import Outcome, PruningJob

METHOD = "fastv"


def prune(job: PruningJob) -> Outcome:
    """Solve for the keep ratio of the one place; see ``comp.registry.methods.Method.load``."""
    return prune_tokens(job, METHOD, same_share([early_place(job.adapter)], "mean_head"))
