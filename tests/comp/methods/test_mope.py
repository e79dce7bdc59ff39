"""MoPE: errors of modules by brute force, both orders by hand, the requested rate, resuming."""

import json

import pytest
import torch

from comp.adapter import Forwarding
from comp.importance.parameters import Scores
from comp.masks import Masks
from comp.methods import mope
from comp.methods.common.parameters import parameter_problem
from comp.training.trainer import accuracy
from tests.comp.jobs import small_job

ONE, OTHER, THIRD = ("language", 0), ("language", 1), ("vision", 0)


def test_places_among_all_of_a_part_by_hand():
    rises = {
        ONE: torch.tensor([0.3, 0.1]),
        OTHER: torch.tensor([0.2, 0.1]),
        THIRD: torch.tensor([9.0]),
    }
    within = {ONE: torch.tensor([0.0, 5.0]), OTHER: torch.zeros(2), THIRD: torch.zeros(1)}
    places = mope._places(rises, within)
    # 0.1 twice: the other block's, with the smaller norm, is removed first.
    assert places[ONE].tolist() == [0.875, 0.375]
    assert places[OTHER].tolist() == [0.625, 0.125]
    assert places[THIRD].tolist() == [0.5]


def worth_of(masks_to_worth):
    """A loss that is a sum over what is masked."""

    def loss(masks):
        total = 0.0
        for kind, of in (("heads", masks.heads), ("channels", masks.channels)):
            for key, mask in of.items():
                total += float(((1 - mask) * masks_to_worth[kind][key]).sum())
        return total

    return loss


@pytest.fixture
def problem(tmp_path):
    return parameter_problem(small_job("clip", tmp_path, 0.4))


def test_width_then_depth_with_a_known_loss(problem, tmp_path):
    torch.manual_seed(0)
    masks = problem.whole().masks
    worth = {
        "heads": {key: torch.rand(len(mask)) for key, mask in masks.heads.items()},
        "channels": {key: torch.rand(len(mask)) for key, mask in masks.channels.items()},
    }
    worth["heads"]["vision", 2] *= 1e-3  # this layer is worth nothing
    worth["channels"]["vision", 2] *= 1e-3
    loss = worth_of(worth)
    # Norms in the order of worth, so that groups of channels are of like worth too.
    norms = Scores(worth["heads"], worth["channels"])
    known = mope.Losses(tmp_path / "mope.json")
    scores = mope.width_scores(problem, norms, known, loss, lambda done: None)
    for part in ("vision", "language"):
        heads = {
            (key, i): float(w) for key, each in worth["heads"].items() for i, w in enumerate(each)
        }
        mine = [name for name in heads if name[0][0] == part]
        by_score = sorted(mine, key=lambda name: float(scores.heads[name[0]][name[1]]))
        assert by_score == sorted(mine, key=heads.get)
    narrow = mope.narrowed(problem, scores)
    half = problem.dense_macs - mope.WIDTH_SHARE * (problem.dense_macs - problem.target)
    assert 0.92 * half < problem.macs(narrow.counts()) <= half + 1
    layers = mope.layers_by_error(problem, narrow, scores, known, loss)
    # Removed with the width already, or the first to be removed.
    assert ("vision", 2) not in [units[0][2] for units in layers[1:]]
    ratios = []
    for units in layers:
        flat = mope._cut(narrow, units)
        removed = problem.macs(narrow.counts()) - problem.macs(flat.counts())
        ratios.append((loss(flat) - loss(narrow)) / removed)
        (key,) = {unit[2] for unit in units}
        assert int(flat.heads[key].sum()) == 1
        assert int(flat.channels[key].sum()) == problem.min_channels
    assert ratios == sorted(ratios)
    masks = mope.shallower(problem, narrow, layers)
    assert problem.macs(masks.counts()) <= problem.target
    assert int(masks.heads["vision", 2].sum()) == 1
    # The layers after the one where the target is met keep their width.
    changed = [
        not torch.equal(masks.heads[u[0][2]], narrow.heads[u[0][2]])
        or not torch.equal(masks.channels[u[0][2]], narrow.channels[u[0][2]])
        for u in layers
    ]
    assert changed == sorted(changed, reverse=True)


@torch.no_grad()
def test_module_error_equals_the_loss_without_the_module(tmp_path):
    """A head masked, against its columns of the output projection set to zero."""
    job = small_job("clip", tmp_path, 0.4)
    problem = parameter_problem(job)
    block = next(block for block in problem.blocks if block.key == ("vision", 1))
    loss = mope._loss_on_calibration(job, problem)
    masked = mope._masked_loss(problem, loss, "heads", block, [2])()
    size = block.head_dim
    layer = job.adapter.model.vision_model.encoder.layers[1]
    layer.self_attn.out_proj.weight[:, 2 * size : 3 * size] = 0
    _, expected = accuracy(job.adapter, job.data.calibration, Forwarding(), job.compute)
    assert masked == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["llava", "clip", "blip"])
def test_the_rate_is_met_and_nothing_is_trained(family, tmp_path, monkeypatch):
    monkeypatch.setattr(mope, "FFN_GROUPS", 2)
    job = small_job(family, tmp_path, 0.4)
    before = {name: p.clone() for name, p in job.adapter.model.named_parameters()}
    outcome = mope.prune(job)
    plan = outcome.plan
    assert plan.rate == pytest.approx(0.4, abs=0.01)
    assert (plan.method, plan.drops, outcome.steps) == ("mope", (), 0)
    assert all(len(block.kept_channels) % 8 == 0 for block in plan.blocks)
    assert all(torch.equal(before[n], p) for n, p in job.adapter.model.named_parameters())
    lines = [json.loads(line) for line in (tmp_path / "stages.jsonl").read_text().splitlines()]
    assert [line["rate"] for line in lines] == pytest.approx([0.2, 0.4], abs=0.045)  # a head
    with torch.no_grad():
        batch = job.data.validation[0]
        masked = job.adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks))).loss
        slim = job.adapter.cut(plan).score(batch, Forwarding()).loss
    assert float(masked) == pytest.approx(float(slim), abs=1e-4)


def test_resuming_does_not_repeat_measurements(tmp_path, monkeypatch):
    monkeypatch.setattr(mope, "FFN_GROUPS", 2)
    job = small_job("clip", tmp_path, 0.4)
    plan = mope.prune(job).plan
    path = tmp_path / mope.STATE
    result = json.loads(path.read_text())
    some = dict(list(result.items())[:20])
    path.write_text(json.dumps(some))
    evaluated = []
    real = mope.Losses.of

    def counting(self, name, measure):
        if name not in self.measured:
            evaluated.append(name)
        return real(self, name, measure)

    monkeypatch.setattr(mope.Losses, "of", counting)
    assert mope.prune(small_job("clip", tmp_path, 0.4)).plan == plan
    assert set(evaluated) == set(result) - set(some)
