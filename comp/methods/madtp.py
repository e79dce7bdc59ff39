"""MADTP: drop tokens of both encoders by three scores and a shared dictionary, and merge them into one.

Paper: Cao et al., "MADTP: Multimodal Alignment-Guided Dynamic Token Pruning for Accelerating
Vision-Language Transformer" (CVPR 2024). The original's threshold keeps a different number of tokens for
each input. Deployed shapes are fixed, so a keep ratio replaces it, in training too.

Steps:

1. Solve for the keep ratio that meets the rate, and attach a dictionary with random entries.
2. In each stage, lower the ratio and train the model and the dictionary; then measure.

Prunes the tokens of both encoders of a CLIP or a BLIP. Options: ``modes`` (tokens of both kinds),
``stages``, ``steps_per_stage``.
"""

from dataclasses import replace
from typing import Any, cast

import torch

from comp.adapter import FamilyAdapter, Forwarding, Scored
from comp.errors import CompExportError
from comp.masks import Masks
from comp.methods.common.encoder_tokens import TokenProblem, token_problem
from comp.methods.common.stages import plan_of_drops
from comp.plan import shares_of
from comp.search.job import Outcome, PruningJob
from comp.search.saved_state import SavedSearch, load_search, save_search, stage_line
from comp.search.stage import SearchState
from comp.search.strategy import ModeCost
from comp.tokens.dictionary import TokenDictionary, attach_dictionary, dictionary_of
from comp.tokens.drop_rules import rules_from_plan

METHOD = "madtp"
ALIGNMENT = 0.1  # weight of the alignment loss; the task's loss has weight 1


def prune(job: PruningJob) -> Outcome:
    """Lower the keep ratio stage by stage while the dictionary learns (``Method.load``)."""
    adapter, options = job.adapter, job.options
    problem = token_problem(job, "aligned", "one")
    check_learns(job, problem, METHOD)
    strength = problem.strength()
    if strength < len(problem.places):
        raise CompExportError(
            f"rate {options.rate:g} is too small for --method madtp, which drops tokens at each of the "
            f"{len(problem.places)} places of both encoders: choose a larger --rate"
        )
    torch.manual_seed(options.seed)  # the entries start at random
    attach_dictionary(adapter.model, problem.drops(strength))
    saved = load_search(job.folder, adapter, options.modes)
    if saved is None:
        metric, _ = job.measured()
        costs = dict.fromkeys(options.modes, ModeCost())
        state = SearchState(Masks.ones(adapter.blocks))
        saved = SavedSearch(state, 0, metric, metric, costs, ())
    with job.progress.task("pruning", options.stages, saved.stage) as task:
        while saved.stage < options.stages:
            task.at(saved.stage)
            saved, line = _stage(job, problem, strength, saved)
            if job.compute.is_main:
                save_search(job.folder, adapter, saved, line)
                job.progress.stage(line)
            job.compute.accelerator.wait_for_everyone()
    plan = plan_of_drops(job, problem.workload, problem.drops(strength), METHOD)
    return Outcome(plan, saved.dense_metric, saved.metric, options.steps)


def _stage(
    job: PruningJob, problem: TokenProblem, strength: int, saved: SavedSearch
) -> tuple[SavedSearch, dict[str, Any]]:
    """Train at the keep ratio of the next stage and measure; return the search and the stage's line."""
    options, stage = job.options, saved.stage + 1
    least = len(problem.places)  # every place drops tokens from the first stage on
    earlier, drops = (
        problem.drops(max(least, strength * number // options.stages)) if number else ()
        for number in (saved.stage, stage)
    )
    forwarding = Forwarding(rules=rules_from_plan(drops))
    guided(job).train(
        saved.stage * options.steps_per_stage, options.steps_per_stage, lambda _: forwarding
    )
    metric, loss = job.measured(drops=drops)
    state = replace(saved.state, shares=shares_of(drops))
    macs = problem.dense_macs, problem.macs(earlier), problem.macs(drops)
    after = saved.metric, metric, loss
    line = stage_line(stage, "+".join(problem.modes), macs, after, state.shares)
    return replace(saved, state=state, stage=stage, metric=metric), line


def guided(job: PruningJob) -> PruningJob:
    """Return the job with the dictionary's alignment loss in its training."""
    dictionary = dictionary_of(job.adapter.model)
    assert dictionary is not None
    return replace(job, adapter=cast(FamilyAdapter, Guided(job.adapter, dictionary)))


class Guided:
    """An adapter whose loss includes the dictionary's alignment loss; has only what a trainer calls."""

    def __init__(self, adapter: FamilyAdapter, dictionary: TokenDictionary) -> None:
        self.model, self.tower = adapter.model, adapter.tower
        self._adapter, self._dictionary = adapter, dictionary

    def collate(self, examples: Any) -> Any:
        return self._adapter.collate(examples)

    def score(self, batch: Any, forwarding: Forwarding) -> Scored:
        """Run a batch; the loss is the task's plus ``ALIGNMENT`` times the alignment loss."""
        with self._dictionary.recording():
            scored = self._adapter.score(batch, forwarding)
            loss = scored.loss + ALIGNMENT * self._dictionary.alignment_loss()
        return replace(scored, loss=loss)


def check_learns(job: PruningJob, problem: TokenProblem, method: str) -> None:
    """Refuse a job in which the dictionary cannot learn.

    Raises:
        CompExportError: only one encoder drops tokens, or there are no training steps.
    """
    if set(problem.places.values()) != {"vision", "text"}:
        raise CompExportError(
            f"--method {method} aligns the tokens of two encoders, and modes "
            f"{', '.join(problem.modes)} are of one: name vision_tokens and language_tokens in --modes; "
            "a captioner has no text encoder, choose another --method for it"
        )
    if job.options.steps == 0:
        raise CompExportError(
            f"--method {method} learns its dictionary while it prunes, and there are no steps to train it: "
            "set --steps-per-stage, and a --recover other than none"
        )
