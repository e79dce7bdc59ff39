"""Turbo: one ratio at the requested rate, MACs, exact cuts, refusals."""

import json

import pytest
import torch

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.flops.token_drops import dropped_macs
from comp.masks import Masks
from comp.methods import turbo
from comp.plan import DropPlan, PruningPlan
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.jobs import small_job
from tests.comp.merging import macs_of_a_way, ways_of
from tests.comp.small_blip import TASKS, examples_of, random_blip, random_plan

TOKENS = ("vision_tokens", "language_tokens")


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_the_requested_rate_is_met(family, tmp_path):
    job = small_job(family, tmp_path, 0.4, modes=TOKENS)
    before = {name: p.clone() for name, p in job.adapter.model.named_parameters()}
    outcome = turbo.prune(job)
    plan = outcome.plan
    assert plan.rate == pytest.approx(0.4, abs=0.005)
    assert plan.macs == sum(dropped_macs(job.adapter.shape, plan.workload, plan.drops).values())
    assert {drop.place for drop in plan.drops} == set(job.adapter.drop_places)
    assert {(drop.ranking, drop.merge) for drop in plan.drops} == {("informativity", "similar")}
    ratios = {drop.keep_ratio for drop in plan.drops}
    assert max(ratios) - min(ratios) <= 0.001 + 1e-9
    assert all(len(b.kept_channels) == b.intermediate_size for b in plan.blocks)
    assert outcome.steps == 0
    assert all(torch.equal(p, before[name]) for name, p in job.adapter.model.named_parameters())
    (line,) = [json.loads(each) for each in (tmp_path / "stages.jsonl").read_text().splitlines()]
    assert (line["rate"], line["mode"]) == (plan.rate, "vision_tokens+language_tokens")
    slim = job.adapter.cut(plan)
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    with torch.no_grad():
        (one, two) = (
            each.score(job.data.validation[0], forwarding) for each in (job.adapter, slim)
        )
    torch.testing.assert_close(one.loss, two.loss)
    assert slim.model.drops == plan.drops


def test_one_mode_leaves_the_other_untouched(tmp_path):
    plan = turbo.prune(small_job("clip", tmp_path, 0.4, modes=("vision_tokens",))).plan
    assert {drop.part for drop in plan.drops} == {"vision"}


def test_unreachable_rates_are_refused(tmp_path):
    with pytest.raises(CompExportError, match=r"rate 0\.99 is beyond .* at most 0\.\d\d"):
        turbo.prune(small_job("clip", tmp_path, 0.99, modes=TOKENS))
    with pytest.raises(CompExportError, match="drop no tokens of this model"):
        turbo.prune(small_job("clip", tmp_path, 0.4, modes=("vision_parameters",)))


def test_macs_of_merging():
    """CLIP-B/16: cosines of all pairs by 768-wide keys, and a matrix of k × n shares by 768."""
    extra, left = macs_of_a_way("informativity", "similar")
    assert extra == 197 * 197 * 768 + left * 197 * 768
    assert macs_of_a_way("received", "none")[0] == 0
    extra, left = macs_of_a_way("aligned", "one")
    assert extra == 197 * 512 * (100 + 768) + left * 197 * 768


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_masked_equals_slim(task):
    adapter = random_blip(task)
    plan = ways_of(random_plan(adapter, seed=2, seen=0.6, read=0.6), "informativity", "similar")
    batch, rules = adapter.collate(examples_of(task, 4)), rules_from_plan(plan.drops)
    masked = adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks), rules))
    slim = adapter.cut(plan).score(batch, Forwarding(rules=rules))
    torch.testing.assert_close(masked.loss, slim.loss, atol=1e-4, rtol=1e-4)
    assert masked.shares == slim.shares


def test_plans_without_the_new_fields_have_the_defaults(tmp_path):
    """Old plans drop by attention received and merge nothing; a LLaVA merges nothing either."""
    old = {"part": "vision", "after_layer": 1, "vision_keep_ratio": 0.5, "text_keep_ratio": 1.0}
    drop = DropPlan(**old)
    assert (drop.ranking, drop.merge) == ("received", "none")
    assert drop == DropPlan(**old, ranking="received", merge="none")
    plan = random_plan(random_blip("statement"))
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    merging = ways_of(plan, "received", "one").model_dump() | {"family": "llava"}
    with pytest.raises(ValueError, match="not ranked or merged as"):
        PruningPlan.model_validate(merging)
