"""Simple joint pruning: the split by hand, both orders, resumption, refusals."""

import json
import math

import pytest
import torch

from comp.adapter import Forwarding
from comp.checkpoints.slim_encoder_shape import planned_shape
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.flops.llava import llava_macs
from comp.flops.token_drops import dropped_macs
from comp.masks import Masks
from comp.methods import sjp, sjp_sequential, upop
from comp.methods.sjp import Split, sequential, simultaneous
from comp.search.job import PruningJob
from comp.tokens.dictionary import attach_dictionary, dictionary_of
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.jobs import PARAMETERS, small_job

TOKENS = {"llava": ("vision_tokens",), "clip": ("vision_tokens", "language_tokens")}
TOKENS["blip"] = TOKENS["clip"]
RATES = {"llava": 0.4, "clip": 0.4, "blip": 0.5}
METHODS = {"sjp": sjp, "sjp-sequential": sjp_sequential}


def joint_job(family, folder, rate=None, **more):
    modes = TOKENS[family] + PARAMETERS[family]
    options = {"modes": modes, "align": 4 if family == "llava" else 8, "stages": 4, **more}
    return small_job(family, folder, RATES[family] if rate is None else rate, **options)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]


def test_the_split_by_hand():
    """1000 MACs; a strength takes 100 off them, and parameters can leave three tenths of what is left."""
    split = Split(1000, lambda s: 1000 - 100 * s, lambda s: 300 - 30 * s, (1, 9))
    assert split.strength(0.64) == 4  # tokens leave sqrt(0.36) = 600, parameters 0.6 of these
    assert split.strength(0.84) == 6  # 400, and 0.4 of these
    assert split.strength(0.75) == 5
    # 300 is nearest to sqrt(0.08) = 283, of which parameters cannot leave the 80 wanted: 90, then 60.
    assert split.strength(0.92) == 8
    assert split.largest_rate == pytest.approx(1 - 0.030 - 0.005)
    assert split.strength(0.001) == 1  # the weakest possible

    # Tokens can leave no fewer than 700, so parameters remove the rest.
    few = Split(1000, lambda s: 1000 - 100 * s, lambda s: 300 - 30 * s, (1, 3))
    assert few.strength(0.75) == 3
    assert few.largest_rate == pytest.approx(1 - 0.210 - 0.005)


def test_order_of_stages():
    assert [simultaneous(stage, 4) for stage in (1, 2, 4)] == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)]
    assert [sequential(stage, 4) for stage in (1, 2, 3, 4)] == [
        (0.5, 0.0),
        (1.0, 0.0),
        (None, 0.5),
        (None, 1.0),
    ]
    assert [sequential(stage, 3) for stage in (1, 2, 3)] == [(0.5, 0.0), (1.0, 0.0), (None, 1.0)]
    assert [sequential(stage, 2) for stage in (1, 2)] == [(1.0, 0.0), (None, 1.0)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", TOKENS)
def test_a_run_meets_the_rate(family, name, tmp_path):
    job = joint_job(family, tmp_path / "state")
    outcome = METHODS[name].prune(job)
    plan, lines = outcome.plan, lines_of(tmp_path / "state")
    rate = RATES[family]
    assert plan.macs == pytest.approx((1 - rate) * plan.macs_dense, rel=0.01)
    assert (plan.method, outcome.steps) == (name, 8)
    assert counted(job.adapter, plan) == plan.macs

    # Half of the compression each.
    whole = job.adapter.macs_of_drops(plan.drops, plan.workload)
    assert whole / plan.macs_dense == pytest.approx(math.sqrt(1 - rate), abs=0.05)
    ways = {(drop.ranking, drop.merge) for drop in plan.drops}
    assert ways == {("next_layer", "none")} if family == "llava" else {("aligned", "one")}
    assert {drop.place for drop in plan.drops} == set(job.adapter.drop_places)
    if family == "llava":
        assert {drop.text_keep_ratio for drop in plan.drops} == {1.0}

    tokens, parameters = (set(of[family]) for of in (TOKENS, PARAMETERS))
    stages = [set(line["mode"].split("+")) for line in lines]
    both = [tokens | parameters] * 4
    assert stages == (both if name == "sjp" else [parameters] * 2 + [tokens] * 2)
    rates = [line["rate"] for line in lines]
    assert rates[-1] == plan.rate
    if (
        family == "llava"
    ):  # in models as small as the others, merging a few tokens takes more than it saves
        assert rates == sorted(rates)
    dropping = [bool(line["keep_ratios"]) for line in lines]
    assert dropping == ([True] * 4 if name == "sjp" else [False, False, True, True])

    check_slim(job, plan, tmp_path / "slim")


def counted(adapter, plan):
    """What the plan leaves, counted from its sizes alone."""
    if plan.family == "llava":
        load = plan.workload
        return llava_macs(adapter.shape, load.image_tokens, load.text_tokens, plan).macs
    shape = planned_shape(adapter.shape, plan)
    return sum(dropped_macs(shape, plan.workload, plan.drops).values())


def check_slim(job, plan, folder):
    """The model under the plan's masks, the cut one, and the cut one as it is loaded are the same."""
    job.adapter.cut(plan).save(folder)
    loaded, rules = load_adapter(folder), rules_from_plan(plan.drops)
    batch = job.data.validation[0]
    with torch.no_grad():
        masked = job.adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks), rules))
        slim = loaded.score(batch, Forwarding(rules=rules))
    torch.testing.assert_close(masked.loss, slim.loss, atol=1e-4, rtol=1e-4)
    assert masked.shares == slim.shares
    assert any(share.vision_kept < share.vision for share in slim.shares.values())


@pytest.mark.parametrize("family", ["llava", "clip"])
def test_the_largest_reachable_rate_is_named_and_reachable(family, tmp_path):
    with pytest.raises(
        CompExportError, match=r"rate 0\.99 is beyond .* at most 0\.\d\d; "
    ) as error:
        sjp.prune(joint_job(family, tmp_path / "beyond", 0.99))
    largest = float(str(error.value).partition("at most ")[2][:4])
    plan = sjp.prune(joint_job(family, tmp_path / "most", largest, stages=1)).plan
    assert plan.rate == pytest.approx(largest, abs=0.01)


def test_an_unreachable_rate_names_more_modes(tmp_path):
    modes = ("vision_tokens", "language_parameters")
    with pytest.raises(CompExportError, match=r"or try --modes vt,vp,lp$|or try --modes vt,lp,vp$"):
        sjp.prune(joint_job("llava", tmp_path, 0.95, modes=modes))


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("family", "name", "last"),
    [("clip", "sjp", 1), ("clip", "sjp-sequential", 2), ("llava", "sjp-sequential", 3)],
)
def test_a_killed_run_resumes_to_the_same_plan(family, name, last, tmp_path, monkeypatch):
    """Kill it in the stages of parameters, between the two kinds, and in the stages of tokens."""
    method = METHODS[name]
    whole = joint_job(family, tmp_path / "whole")
    expected = method.prune(whole)
    trained = PruningJob.train

    def killing(job, first, *rest):
        """Kill the run in the last stage, after its steps and before it is saved."""
        trained(job, first, *rest)
        if first == last * job.options.steps_per_stage:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PruningJob, "train", killing)
        with pytest.raises(Killed):
            method.prune(joint_job(family, tmp_path / "killed"))
    again = joint_job(family, tmp_path / "killed")
    outcome = method.prune(again)
    assert outcome == expected
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    theirs = dict(whole.adapter.model.named_parameters())
    result = dict(again.adapter.model.named_parameters())
    assert result.keys() == theirs.keys()
    for key, parameter in result.items():
        assert torch.allclose(parameter, theirs[key], atol=1e-6), key


def test_masks_are_fixed_and_the_dictionary_learns_while_tokens_are_dropped(tmp_path, monkeypatch):
    job = joint_job("clip", tmp_path, stages=4)
    seen, real = [], upop._save

    def noting(job, search):
        real(job, search)
        entries = dictionary_of(job.adapter.model).entries.detach().clone()
        seen.append((search.alpha, search.gradients, entries))

    monkeypatch.setattr(upop, "_save", noting)
    plan = sjp_sequential.prune(job).plan
    alphas = [alpha for alpha, _, _ in seen]
    assert {float(v) for mask in alphas[1].heads.values() for v in mask} == {0.0, 1.0}
    for key, mask in alphas[1].heads.items():
        assert torch.equal(mask, alphas[3].heads[key])
        block = next(b for b in plan.blocks if (b.part, b.index) == key)
        assert mask.nonzero()[:, 0].tolist() == list(block.kept_key_value_heads)
    other = joint_job("clip", tmp_path / "other")
    torch.manual_seed(job.options.seed)
    attach_dictionary(other.adapter.model, plan.drops)
    begun = dictionary_of(other.adapter.model).entries
    assert torch.equal(seen[1][2], begun)
    assert not torch.equal(seen[2][2], begun)


def test_parameters_are_chosen_by_upop_scores(tmp_path, monkeypatch):
    """At the end the removed units have the lowest scores, whatever tokens were kept."""
    job = joint_job("clip", tmp_path, align=4)
    seen, real = [], upop._save
    monkeypatch.setattr(upop, "_save", lambda job, search: (seen.append(search), real(job, search)))
    plan = sjp.prune(job).plan
    scores = upop.scores_of(seen[-1].gradients)
    gone, kept = [], []
    for block in plan.blocks:
        for index, score in enumerate(scores.heads[block.part, block.index].tolist()):
            (kept if index in block.kept_key_value_heads else gone).append(score)
    # A layer's best head stays whatever its score.
    best = {float(max(values)) for values in scores.heads.values()}
    assert gone
    assert max(gone) <= min(score for score in kept if score not in best)


def test_unsupported_options_are_refused(tmp_path):
    parameters = PARAMETERS["clip"]
    with pytest.raises(CompExportError, match="method sjp aligns the tokens of two encoders"):
        sjp.prune(joint_job("clip", tmp_path / "one", modes=("vision_tokens", *parameters)))
    with pytest.raises(CompExportError, match=r"method sjp learns its dictionary .* no steps"):
        sjp.prune(joint_job("clip", tmp_path / "two", steps_per_stage=0))
    with pytest.raises(CompExportError, match="--stages 2 or more, or choose sjp"):
        sjp_sequential.prune(joint_job("clip", tmp_path / "three", stages=1))


def test_without_training_the_calibration_set_decides_on_a_llava(tmp_path):
    job = joint_job("llava", tmp_path, steps_per_stage=0)
    before = {name: p.clone() for name, p in job.adapter.model.named_parameters()}
    outcome = sjp.prune(job)
    assert outcome.plan.macs == pytest.approx(0.6 * outcome.plan.macs_dense, rel=0.01)
    assert outcome.steps == 0
    assert all(torch.equal(before[n], p) for n, p in job.adapter.model.named_parameters())
