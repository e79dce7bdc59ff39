"""UPop: its schedule, its ranking by hand, gradients of masks against differences, resumption."""

import json
import math

import pytest
import torch

from comp.adapter import Forwarding
from comp.importance.parameters import Scores
from comp.masks import Masks
from comp.methods import upop
from comp.methods.common.parameters import parameter_problem
from comp.search.stage import mask_of
from tests.comp.jobs import small_job

FAMILIES = ("llava", "clip", "blip")
ONE, OTHER = ("language", 0), ("language", 1)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]


def test_schedule_by_hand():
    total, rate = 400, 0.85
    for step in (0, 49, 99, 199, 399):
        paper = rate * math.sqrt((1 - math.cos(math.pi * (step + 1) / total)) / 2)
        assert rate * upop.ramp((step + 1) / total) == pytest.approx(paper)
    assert upop.ramp(0.5) == pytest.approx(math.sqrt(0.5))
    assert upop.ramp(1.0) == 1.0


def test_scores_by_hand():
    gradients = Scores(
        {ONE: torch.tensor([1.0, 3.0]), OTHER: torch.tensor([5.0, 7.0])},
        {ONE: torch.tensor([-0.1, 0.1])},
    )
    scores = upop.scores_of(gradients)
    # Attention: mean 4, deviation sqrt(5), over both blocks; FFN by itself: mean 0, deviation 0.1.
    root = math.sqrt(5)
    assert scores.heads[ONE].tolist() == pytest.approx([3 / root, 1 / root])
    assert scores.heads[OTHER].tolist() == pytest.approx([-1 / root, -3 / root])
    assert scores.channels[ONE].tolist() == pytest.approx([1.0, -1.0])


def test_an_l1_penalty_changes_no_score():
    torch.manual_seed(0)
    gradients = Scores({ONE: torch.randn(4)}, {ONE: torch.randn(9), OTHER: torch.randn(9)})
    penalised = Scores(
        {key: values + 0.3 for key, values in gradients.heads.items()},
        {key: values + 0.02 for key, values in gradients.channels.items()},
    )
    for one, two in zip(
        vars(upop.scores_of(gradients)).values(),
        vars(upop.scores_of(penalised)).values(),
        strict=True,
    ):
        for key in one:
            assert torch.allclose(one[key], two[key], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_gradients_equal_differences_of_the_loss(family, tmp_path):
    """Against central differences, for the head and the channel of each part that matter most."""
    job = small_job(family, tmp_path, 0.4)
    batch = job.data.calibration[0]
    problem = parameter_problem(job)
    start = upop.Progressive(0, 0.0, problem.whole().masks, upop._zeros(problem))
    leaves = upop._Leaves.of(problem, start)
    loss = job.adapter.score(batch, Forwarding(leaves.masks)).loss
    leaves.add(torch.autograd.grad(loss, leaves.tensors))
    result = leaves.summed(job)

    def loss_at(kind, key, index, value):
        masks = problem.whole().masks
        mask_of(masks, kind, key)[index] = value
        with torch.no_grad():
            return float(job.adapter.score(batch, Forwarding(masks)).loss)

    for part in problem.parts:
        for kind, of in (("heads", result.heads), ("channels", result.channels)):
            values = {key: each for key, each in of.items() if key[0] == part}
            if not values:
                continue
            key = max(values, key=lambda k: float(values[k].abs().max()))
            index = int(values[key].abs().argmax())
            step = 0.02
            there, back = (loss_at(kind, key, index, 1 + way * step) for way in (1, -1))
            difference = (there - back) / (2 * step)
            assert float(values[key][index]) == pytest.approx(difference, rel=0.05, abs=2e-4)
            assert abs(difference) > 1e-4


def test_removed_units_follow_the_scores_until_the_target_is_met(tmp_path):
    job = small_job("clip", tmp_path, 0.4)
    problem = parameter_problem(job)
    torch.manual_seed(1)
    nothing = upop._zeros(problem)
    gradients = Scores(
        {key: torch.randn(len(each)) for key, each in nothing.heads.items()},
        {key: torch.randn(len(each)) for key, each in nothing.channels.items()},
    )
    share = 0.5
    scores = upop.scores_of(gradients)
    cut = upop.units_to_cut(problem, scores, share)
    target = problem.dense_macs - share * (problem.dense_macs - problem.target)

    def macs(units):
        return problem.macs(upop.masked(problem, units, 0.0).counts())

    assert macs(cut) <= target + 1 < macs(cut[:-1])
    highest = max(unit[0] for unit in cut)
    gone = {unit[1:] for unit in cut}
    for key, values in scores.heads.items():
        kept = [i for i in range(len(values)) if ("heads", key, i) not in gone]
        assert kept
        # What is kept below the threshold is the layer's last head.
        assert all(float(values[i]) >= highest for i in kept) or len(kept) == 1
    soft = upop.masked(problem, cut, 1 - share)
    assert {float(v) for mask in soft.heads.values() for v in mask} == {0.5, 1.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_meets_the_rate(family, tmp_path):
    job = small_job(family, tmp_path / "state", 0.4)
    outcome = upop.prune(job)
    plan, lines = outcome.plan, lines_of(tmp_path / "state")
    assert plan.rate == pytest.approx(0.4, abs=0.01)
    assert (plan.method, plan.drops, outcome.steps) == ("upop", (), 6)
    assert [line["stage"] for line in lines] == [1, 2, 3]
    wanted = [0.4 * upop.ramp(progress) for progress in (1 / 3, 2 / 3, 1)]
    assert [line["rate"] for line in lines] == pytest.approx(wanted, abs=0.04)
    assert all(len(block.kept_channels) % 8 == 0 for block in plan.blocks)
    batch = job.data.validation[0]
    with torch.no_grad():
        masked = job.adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks))).loss
        slim = job.adapter.cut(plan).score(batch, Forwarding()).loss
    assert float(masked) == pytest.approx(float(slim), abs=1e-4)


class Killed(Exception):
    pass


def test_a_killed_search_resumes_to_the_same_plan(tmp_path, monkeypatch):
    whole = small_job("clip", tmp_path / "whole", 0.4)
    expected = upop.prune(whole)
    real = upop._save

    def killing(job, search):
        real(job, search)
        if search.stage == 2:
            raise Killed

    killed = small_job("clip", tmp_path / "killed", 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(upop, "_save", killing)
        with pytest.raises(Killed):
            upop.prune(killed)
    again = small_job("clip", tmp_path / "killed", 0.4)
    outcome = upop.prune(again)
    assert outcome.plan == expected.plan
    assert outcome.dense_metric == expected.dense_metric
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    theirs = dict(whole.adapter.model.named_parameters())
    for name, parameter in again.adapter.model.named_parameters():
        assert torch.allclose(parameter, theirs[name], atol=1e-6), name


def test_without_training_the_calibration_set_decides(tmp_path):
    job = small_job("clip", tmp_path, 0.4, steps_per_stage=0)
    before = {name: p.clone() for name, p in job.adapter.model.named_parameters()}
    outcome = upop.prune(job)
    assert outcome.plan.rate == pytest.approx(0.4, abs=0.01)
    assert outcome.steps == 0
    assert all(torch.equal(before[n], p) for n, p in job.adapter.model.named_parameters())
