"""Turbo: drop the least informative tokens of both encoders, merging each into its most similar kept one.

After Ju et al., "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models"
(ECCV 2024): a token's worth is the attention of [CLS] less its redundancy; nothing is trained.
"""

from comp.methods.common.encoder_tokens import pruned_at_once, token_problem
from comp.search.job import Outcome, PruningJob

METHOD = "turbo"


def prune(job: PruningJob) -> Outcome:
    """Solve for the one keep ratio of all places; see ``comp.pipeline.steps.method``."""
    problem = token_problem(job, "informativity", "similar")
    return pruned_at_once(job, problem, METHOD)
