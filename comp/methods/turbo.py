"""Turbo: drop the least informative tokens of both encoders, merging each into its most similar kept one.

Paper: Ju et al., "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models"
(ECCV 2024).

Steps: solve for the keep ratio that meets the rate, then measure once. A token's importance is the
attention of [CLS] minus its redundancy (``informativity``). Nothing is trained.

Prunes the tokens of a CLIP or a BLIP, in every block of the modes. Options: ``modes``.
"""

from comp.methods.common.encoder_tokens import pruned_at_once, token_problem
from comp.search.job import Outcome, PruningJob

METHOD = "turbo"


def prune(job: PruningJob) -> Outcome:
    """Solve for the keep ratio of all places; see ``comp.registry.methods.Method.load``."""
    problem = token_problem(job, "informativity", "similar")
    return pruned_at_once(job, problem, METHOD)
