"""DART: after two layers of 32, the image tokens that repeat a few pivot tokens go.

After Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
More" (EMNLP 2025); ``comp.importance.decoder_rankings.diversity`` says how the pivots are compared.
"""

from comp.methods.common.decoder_tokens import early_place, prune_tokens, same_share
from comp.search.job import Outcome, PruningJob

METHOD = "dart"


def prune(job: PruningJob) -> Outcome:
    """One place, one share, nothing trained; see ``comp.pipeline.steps.method``."""
    return prune_tokens(job, METHOD, same_share([early_place(job.adapter)], "diversity"))
