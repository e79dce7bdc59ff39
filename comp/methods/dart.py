"""DART: drop the image tokens that repeat a few pivot tokens, after two layers of 32.

Paper: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
More" (EMNLP 2025).

Steps: solve for the keep ratio that meets the rate, then measure once. Tokens are ranked by
``comp.importance.decoder_rankings.diversity``. Nothing is trained.

Prunes the image tokens of a LLaVA at one place. No options of its own.
"""

from comp.methods.common.decoder_tokens import early_place, prune_tokens, same_share
from comp.search.job import Outcome, PruningJob

METHOD = "dart"


def prune(job: PruningJob) -> Outcome:
    """Solve for the keep ratio of the one place; see ``comp.registry.methods.Method.load``."""
    return prune_tokens(job, METHOD, same_share([early_place(job.adapter)], "diversity"))
