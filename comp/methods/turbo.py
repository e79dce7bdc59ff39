"""Turbo: drop the least informative tokens of both encoders, merging each into its most similar kept one.

After Ju et al., "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models"
(ECCV 2024): a token's worth is the attention of [CLS] less its redundancy; nothing is trained.
"""

from comp.methods.base import Job, Outcome
from comp.search_state import write_stages
from comp.token_pruning import line_of, measured, token_ground

METHOD = "turbo"


def prune(job: Job) -> Outcome:
    """Solve for the one keep ratio of all places; see ``comp.methods.base.method``."""
    ground = token_ground(job, "informativity", "similar")
    drops = ground.drops(ground.strength())
    with job.progress.task("pruning", 2) as task:
        dense_metric, _ = measured(job, ())
        task.at(1)
        after = measured(job, drops)
        task.at(2)
    if job.compute.is_main:
        line = line_of(ground, 1, (), drops, (dense_metric, *after))
        write_stages(job.folder, [line])
    job.compute.accelerator.wait_for_everyone()
    plan = ground.plan(drops, job.model_name, METHOD)
    return Outcome(plan, dense_metric, after[0], steps=0)
