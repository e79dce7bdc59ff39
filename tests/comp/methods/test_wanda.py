"""Wanda for structures: Eq. 3 by hand, the same share of every layer, the requested rate, exact cuts."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.importance.parameters import Scores
from comp.masks import BlockShape, Masks, StructureCounts
from comp.methods import wanda
from comp.methods.common.parameters import parameter_problem
from tests.comp.jobs import PARAMETERS, small_job

FAMILIES = ("llava", "clip", "blip")


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.floats(0, 1),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 8),
)
def test_remainders_are_carried_to_the_next_layer(units, share, unit, least):
    sizes = [unit * each for each in units]
    left = wanda.carried(sizes, share, unit, least)
    assert all(min(least, size) <= count <= size for size, count in zip(sizes, left, strict=True))
    wanted = [(1 - share) * size for size in sizes]
    if all(each >= least + unit for each in wanted):  # nothing is carried over
        assert abs(sum(left) - sum(wanted)) <= unit / 2 + 1e-6
        off = (abs(count - each) for count, each in zip(left, wanted, strict=True))
        assert max(off) <= unit + 1e-6


def test_a_third_of_four_heads_by_hand():
    # 2.68 heads a layer: 3 and 0.32 owed, 2.36: 2 and 0.36 more, 3.04: 3, then 2.72: 3
    assert wanda.carried([4, 4, 4, 4], 0.33, 1, 1) == [3, 2, 3, 3]
    assert wanda.carried([4, 4], 1.0, 1, 1) == [1, 1]
    assert wanda.carried([48, 48], 0.0, 16, 16) == [48, 48]


def test_the_best_units_of_each_layer_are_kept():
    block = BlockShape("language", 0, 4, 3, 3, 2, 4, gated=True)
    other = BlockShape("vision", 0, 4, 3, 3, 2, 4, gated=False)
    scores = Scores(
        {block.key: torch.tensor([0.2, 0.9, 0.5])}, {block.key: torch.tensor([4.0, 1.0, 3.0, 2.0])}
    )
    counts = StructureCounts({block.key: 2}, {block.key: 1})
    masks = wanda.best_kept((block, other), scores, counts)
    assert masks.heads[block.key].tolist() == [0, 1, 1]
    assert masks.channels[block.key].tolist() == [1, 0, 0, 0]
    assert masks.heads[other.key].tolist() == [1, 1, 1]


class Inputs:
    """Records the inputs of an output projection."""

    def __init__(self):
        self.heads_of, self.channels_of = {}, {}

    def heads(self, key, mixed, importance):
        self.heads_of.setdefault(key, []).append((mixed, importance))

    def channels(self, key, hidden, importance):
        self.channels_of.setdefault(key, []).append((hidden, importance))


@torch.no_grad()
def test_scores_equal_eq_3(tmp_path):
    """Scores equal brute force on a CLIP: mean of ``|W|`` over outputs times the norm of each input."""
    job = small_job("clip", tmp_path, 0.3)
    problem = parameter_problem(job)
    scores = problem.search.importance(problem.whole(), problem.parts).scores(job.adapter)
    seen = Inputs()
    for batch in job.data.calibration:
        job.adapter.score(batch, Forwarding(), seen)
    key = ("language", 1)
    layer = job.adapter.model.text_model.encoder.layers[1]
    norms = []
    for hidden, importance in seen.channels_of[key]:
        for row, weights in zip(hidden, importance, strict=True):
            there = row[weights > 0]
            norms.append([math.sqrt(sum(float(x) ** 2 for x in column)) for column in there.T])
    mean = torch.tensor(norms).mean(0)
    magnitude = layer.mlp.fc2.weight.abs().mean(0)
    assert torch.allclose(scores.channels[key], mean * magnitude, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_loses_the_same_share_at_the_requested_rate(family, tmp_path):
    job = small_job(family, tmp_path / "state", 0.4)
    before = {name: p.clone() for name, p in job.adapter.model.named_parameters()}
    outcome = wanda.prune(job)
    plan = outcome.plan
    assert plan.method == "wanda"
    assert plan.rate == pytest.approx(0.4, abs=0.01)
    assert plan.drops == ()
    assert outcome.steps == 0
    assert all(torch.equal(before[n], p) for n, p in job.adapter.model.named_parameters())
    counts = wanda.counts_at_target(parameter_problem(job), job.options.align)
    for part in {mode.removesuffix("_parameters") for mode in PARAMETERS[family]}:
        blocks = plan.part(part)
        keys = [(part, block.index) for block in blocks]
        heads = [len(block.kept_key_value_heads) for block in blocks]
        assert heads == [counts.heads[key] for key in keys]
        assert max(heads) - min(heads) <= 1
        widths = [counts.channels[key] for key in keys]
        assert max(widths) - min(widths) <= job.options.align
        # The last multiples of a plan bring the rate nearer.
        assert all(len(block.kept_channels) % job.options.align == 0 for block in blocks)
    assert abs(job.adapter.macs(counts, {}, plan.workload) / plan.macs_dense - 0.6) < 0.02
    (line,) = [json.loads(line) for line in (tmp_path / "state" / "stages.jsonl").open()]
    assert line["mode"] == "+".join(PARAMETERS[family])
    assert (line["macs"], line["metric"]) == (plan.macs, outcome.pruned_metric)
    batch = job.data.validation[0]
    with torch.no_grad():
        masked = job.adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks))).loss
        slim = job.adapter.cut(plan).score(batch, Forwarding()).loss
    assert float(masked) == pytest.approx(float(slim), abs=1e-4)


def test_the_plan_is_reproducible(tmp_path):
    plans = [wanda.prune(small_job("clip", tmp_path, 0.3)).plan for _ in range(2)]
    assert plans[0] == plans[1]


def test_pruning_one_part_leaves_the_others_whole(tmp_path):
    plan = wanda.prune(small_job("clip", tmp_path, 0.2, modes=("vision_parameters",))).plan
    assert plan.rate == pytest.approx(0.2, abs=0.01)
    for block in plan.part("language"):
        assert len(block.kept_channels) == block.intermediate_size


def test_the_largest_reachable_rate_is_named_and_reachable(tmp_path):
    with pytest.raises(CompExportError, match=r"at most 0\.\d\d; choose a smaller") as e:
        wanda.prune(small_job("llava", tmp_path, 0.99, modes=("language_parameters",)))
    assert "tokens" not in str(e.value)
    largest = float(str(e.value).partition("at most ")[2][:4]) - 0.005
    job = small_job("llava", tmp_path, largest, modes=("language_parameters",))
    assert wanda.prune(job).plan.rate == pytest.approx(largest, abs=0.01)
