"""`comp-export prune --method sjp` as a user runs it, up to `verify`, and its refusals."""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.registry.families import family_of
from comp.registry.methods import method_called
from comp.runs import open_run
from tests.comp.small_clip import random_clip
from tests.drawing import drawn

QUICK = ("--stages", "2", "--steps-per-stage", "1", "--recover-steps", "2", "--batch-size", "4")
QUICK += ("--calibration", "4", "--validation", "4", "--dtype", "float32", "--device", "cpu")


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


def from_prune_to_verify(model, run, method, *more, rate):
    words = ("prune", "--model", model, "--rate", rate, "--out", run, "--method", method)
    with drawn():
        printed = call(*words, *QUICK, *more, "--json")
    plan, record = open_run(run).load_plan(), open_run(run).read_record()
    assert plan.macs == pytest.approx((1 - rate) * plan.macs_dense, rel=0.01)
    assert (printed["rate"], plan.method, record["method"]) == (plan.rate, method, method)
    assert any(len(block.kept_heads) < block.num_attention_heads for block in plan.blocks)
    assert any(len(block.kept_channels) < block.intermediate_size for block in plan.blocks)
    for name in ("structure.png", "trajectory.png"):
        assert (run / "reports" / name).is_file()
    call("onnx", run, "--no-check", "--no-dense", "--json")
    report = call("verify", run, "--questions", 3, "--answer-seconds", 0, "--json")
    assert report["ok"]
    assert method in call("inspect", run)
    counted = call("flops", "--plan", run, "--json")
    assert str(plan.macs) in json.dumps(counted)
    return plan, record


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sjp", "sjp-sequential"])
def test_a_clip_of_narrower_blocks_that_merges_tokens(method, tmp_path):
    random_clip().save(tmp_path / "clip")
    plan, record = from_prune_to_verify(
        tmp_path / "clip", tmp_path / "run", method, "--align", "8", rate=0.6
    )
    assert {(drop.ranking, drop.merge) for drop in plan.drops} == {("aligned", "one")}
    assert len(record["modes"]) == 4
    assert record["steps"]["search"] == 2


@pytest.mark.slow
def test_a_llava_of_fewer_heads_that_ranks_by_the_next_layer(checkpoint, tmp_path):
    modes = ("--modes", "vt,lt,lp,vp", "--align", "4")
    plan, record = from_prune_to_verify(checkpoint, tmp_path / "run", "sjp", *modes, rate=0.4)
    assert {drop.ranking for drop in plan.drops} == {"next_layer"}
    config = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())
    assert [drop["ranking"] for drop in config["pruning"]["drops"]] == ["next_layer"] * 3
    report = json.loads((tmp_path / "run" / "reports" / "verify.json").read_text())
    assert {link["questions"] for link in report["links"]} == {3}
    assert [len(link["kept"]) for link in report["links"]] == [3, 3]
    # Text tokens are not dropped, and the record says so.
    assert record["modes"] == ["vision_tokens", "language_parameters", "vision_parameters"]


def test_modes_of_both_kinds_are_needed():
    llava, clip, sjp = family_of("llava"), family_of("clip"), method_called("sjp")
    assert sjp.modes_among(llava.default_modes, llava) == ("vision_tokens", "language_parameters")
    assert sjp.modes_among(clip.default_modes, clip) == clip.default_modes
    for family, modes, kind, names in (
        (
            llava,
            ("vision_tokens", "language_tokens"),
            "parameters",
            "language_parameters, vision_p",
        ),
        (llava, ("language_tokens", "language_parameters"), "tokens", "vision_tokens, or"),
        (clip, ("vision_parameters",), "tokens", "vision_tokens, language_tokens, or"),
    ):
        with pytest.raises(CompExportError, match=f"none of {kind} in .*: name some of {names}"):
            sjp.modes_among(modes, family)
    with pytest.raises(CompExportError, match="names only language_tokens: name some of vision_t"):
        sjp.modes_among(("language_tokens",), llava)
    # The model refuses a name that no family has.
    assert sjp.modes_among(("vision_tokens", "heads"), clip) == ("vision_tokens", "heads")
    comp = method_called("comp")
    assert comp.modes_among(("vision_parameters",), clip) == ("vision_parameters",)
