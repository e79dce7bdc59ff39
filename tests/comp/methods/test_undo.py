"""Stages that are undone: the whole search on a small model whose costs are made up."""

import json
from dataclasses import replace

import pytest
import torch

from comp.methods import comp
from comp.methods.comp import StageQuality
from comp.search.saved_state import STAGES
from comp.search.strategy import StrategyOptions
from tests.comp.jobs import small_job

MODES = ("vision_tokens", "language_parameters")


def searched(folder, monkeypatch, strategy, steps=0):
    """Run a search in which every removed head or channel costs a nat, and a token a thousandth."""
    job = small_job("llava", folder, 0.2, stages=4, steps_per_stage=steps, modes=MODES)
    job = replace(job, options=replace(job.options, reconstruct=steps == 0, strategy=strategy))

    def evaluated(_job, forwarding, at_an_end):
        masks = [*forwarding.masks.heads.values(), *forwarding.masks.channels.values()]
        gone = sum(int((mask == 0).sum()) for mask in masks)
        dropped = sum(1 - rule.vision_keep_ratio for rule in forwarding.rules.values())
        loss = gone + 0.001 * dropped
        return StageQuality(-loss, 0.5 if at_an_end else None, loss)

    monkeypatch.setattr(comp, "evaluate_stage", evaluated)
    before = {name: tensor.clone() for name, tensor in job.adapter.model.state_dict().items()}
    outcome = comp.prune(job)
    lines = [json.loads(line) for line in (folder / STAGES).read_text().splitlines()]
    return job, outcome, lines, before


def test_a_stage_that_costs_too_much_is_undone(tmp_path, monkeypatch):
    job, outcome, lines, before = searched(
        tmp_path, monkeypatch, StrategyOptions(exploration=0.5, undo=True)
    )
    assert {line["mode"] for line in lines} == {"vision_tokens"}
    (tried, *_) = [line for line in lines if line["undone"]]
    assert tried["undone"]["language_parameters"] > 2 * tried["costs"]["vision_tokens"]
    assert tried["costs"]["language_parameters"] == tried["undone"]["language_parameters"]
    for block in outcome.plan.blocks:
        assert len(block.kept_key_value_heads) == block.num_key_value_heads
        assert len(block.kept_channels) == block.intermediate_size
    for name, tensor in job.adapter.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        (StrategyOptions(), 0),
        (StrategyOptions(undo=True), 1),  # it trained, so its steps would be lost
        (StrategyOptions(cost_aware=False, undo=True), 0),  # modes alternate, whatever their cost
    ],
)
def test_stages_that_are_kept(strategy, steps, tmp_path, monkeypatch):
    _, _, lines, _ = searched(tmp_path, monkeypatch, strategy, steps)
    assert "language_parameters" in {line["mode"] for line in lines}
    assert not any(line["undone"] for line in lines)
