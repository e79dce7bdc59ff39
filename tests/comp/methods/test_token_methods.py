"""FastV, PyramidDrop and DART: places, and the share that meets the rate."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from comp.adapter import Forwarding
from comp.checkpoints.llava_shape import read_shape
from comp.cli import cli
from comp.errors import CompExportError
from comp.flops.llava import llava_macs
from comp.methods import dart, fastv, pdrop
from comp.methods.common.decoder_tokens import early_place, same_share, solved
from comp.plan import Workload
from comp.search.job import agreed_workload
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.jobs import small_job

METHODS = {
    "fastv": (fastv, "mean_head", [1]),
    "pdrop": (pdrop, "next_layer", [1, 2, 3]),
    "dart": (dart, "diversity", [1]),
}
QUICK = ("--recover-steps", "3", "--stages", "1", "--steps-per-stage", "2", "--batch-size", "4")
QUICK += ("--calibration", "8", "--validation", "8", "--dtype", "float32", "--device", "cpu")


class Sizes:
    """The sizes of a published model, without its weights, to solve a rate on."""

    def __init__(self, model):
        self.shape = read_shape(model)
        layers = range(self.shape.num_layers)
        self.blocks = [type("Block", (), {"part": "language"}) for _ in layers]

    def macs_of_drops(self, drops, on):
        dropping = replace(self.shape, drops=drops)
        return llava_macs(dropping, on.image_tokens, on.text_tokens).macs


def test_places_scale_with_the_depth():
    assert early_place(Sizes("llava-7b")) == 2
    assert early_place(Sizes("llava-13b")) == 2  # 40 layers: not yet 3
    assert early_place(Sizes("tiny-llava")) == 1


@pytest.mark.parametrize(
    ("places", "ranking", "largest"),
    [([2], "mean_head", 0.81), ([8, 16, 24], "next_layer", 0.65), ([2], "diversity", 0.81)],
)
def test_llava_7b_meets_any_reachable_rate(places, ranking, largest):
    sizes, load = Sizes("llava-7b"), Workload(image_tokens=576, text_tokens=60)
    drops_at, dense = same_share(places, ranking), sizes.macs_of_drops((), load)
    for rate in (0.01, 0.1, 0.333, 0.5, 0.62, largest - 0.01, largest):
        drops = solved(sizes, load, rate, drops_at)
        assert len({drop.vision_keep_ratio for drop in drops}) == 1
        assert 1 - sizes.macs_of_drops(drops, load) / dense == pytest.approx(rate, abs=0.005)
    with pytest.raises(CompExportError, match=f"at most {largest}"):
        solved(sizes, load, largest + 0.02, drops_at)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_drops_image_tokens_and_nothing_else(name, tmp_path):
    method, ranking, places = METHODS[name]
    job = small_job("llava", tmp_path / "state", 0.15, modes=("vision_tokens",))
    before = {key: value.clone() for key, value in job.adapter.model.named_parameters()}
    outcome = method.prune(job)
    plan = outcome.plan
    assert all(torch.equal(before[key], p) for key, p in job.adapter.model.named_parameters())
    assert (plan.method, outcome.steps, plan.position_ids) == (name, 0, "kept")
    assert [drop.after_layer for drop in plan.drops] == places
    assert {(drop.ranking, drop.text_keep_ratio) for drop in plan.drops} == {(ranking, 1.0)}
    assert all(len(block.kept_channels) == block.intermediate_size for block in plan.blocks)
    assert all(len(b.kept_key_value_heads) == b.num_key_value_heads for b in plan.blocks)
    # The nearest possible: images of this model have only 16 tokens.
    load, dense = agreed_workload(job), plan.macs_dense
    drops_at = same_share(places, ranking)
    rates = [
        1 - job.adapter.macs_of_drops(drops_at(each / 1000), load) / dense
        for each in range(1, 1001)
    ]
    assert abs(plan.rate - 0.15) == pytest.approx(min(abs(rate - 0.15) for rate in rates))
    assert plan.macs == llava_macs(job.adapter.shape, *_tokens(load), plan).macs
    (line,) = [json.loads(line) for line in (tmp_path / "state" / "stages.jsonl").open()]
    assert (line["mode"], line["rate"]) == ("vision_tokens", plan.rate)
    assert line["metric"] == outcome.pruned_metric
    batch = job.data.validation[0]
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    with torch.no_grad():
        dropped = job.adapter.score(batch, forwarding)
        slim = job.adapter.cut(plan).score(batch, forwarding)
    assert float(dropped.loss) == pytest.approx(float(slim.loss), abs=1e-5)
    kept = [share.vision_kept / share.vision for share in dropped.shares.values()]
    assert all(share < 1 for share in kept)
    assert method.prune(job).plan == plan  # as a resumed run ends


def _tokens(load):
    return load.image_tokens, load.text_tokens


@pytest.mark.parametrize("name", METHODS)
def test_the_largest_reachable_rate_is_named_and_reachable(name, tmp_path):
    method = METHODS[name][0]
    with pytest.raises(CompExportError, match=r"at most 0\.\d\d; choose a smaller --rate") as e:
        method.prune(small_job("llava", tmp_path, 0.99))
    largest = float(str(e.value).partition("at most ")[2][:4])
    assert method.prune(small_job("llava", tmp_path, largest)).plan.rate == pytest.approx(
        largest, abs=0.005
    )


def test_clip_and_other_modes_are_refused_with_the_reason(checkpoint, tmp_path):
    from tests.comp.small_clip import random_clip

    random_clip().save(tmp_path / "clip")
    words = ["prune", "--rate", "0.3", "--out", str(tmp_path / "run"), *QUICK, "--method", "pdrop"]
    with pytest.raises(CompExportError, match="not for clip models: it drops image tokens between"):
        CliRunner().invoke(cli, [*words, "--model", str(tmp_path / "clip")], catch_exceptions=False)
    words += ["--model", str(checkpoint), "--modes", "lt"]
    with pytest.raises(CompExportError, match="pdrop prunes vision_tokens alone"):
        CliRunner().invoke(cli, words, catch_exceptions=False)
