"""`comp-export prune --method` as a user runs it, and its refusals."""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.runs import open_run
from tests.comp.small_clip import random_clip
from tests.drawing import drawn

QUICK = ("--stages", "3", "--steps-per-stage", "2", "--recover-steps", "3", "--batch-size", "4")
QUICK += ("--calibration", "8", "--validation", "8", "--dtype", "float32", "--device", "cpu")


def prune(checkpoint, out, *more, rate="0.4"):
    arguments = ["prune", "--model", str(checkpoint), "--rate", rate, "--out", str(out)]
    return CliRunner().invoke(cli, [*arguments, *QUICK, *more], catch_exceptions=False)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "dense"
    random_clip().save(path)
    return path


@pytest.mark.parametrize("method", ["wanda", "upop", "mope"])
def test_a_method_from_the_command_line(clip_checkpoint, tmp_path, method):
    """Only the default modes of parameters are pruned; widths are multiples of --align."""
    with drawn():
        words = ("--method", method, "--align", "8", "--json")
        result = prune(clip_checkpoint, tmp_path / "run", *words)
    assert result.exit_code == 0, result.output
    run = open_run(tmp_path / "run")
    plan, record = run.load_plan(), run.read_record()
    assert json.loads(result.stdout)["rate"] == plan.rate == pytest.approx(0.4, abs=0.01)
    assert (plan.method, plan.drops, record["method"]) == (method, (), method)
    assert record["modes"] == ["vision_parameters", "language_parameters"]
    slim = load_adapter(run.checkpoint)
    for block in slim.blocks:
        (planned,) = [b for b in plan.blocks if (b.part, b.index) == block.key]
        assert block.intermediate_size == len(planned.kept_channels)
        assert block.intermediate_size % 8 == 0
    for name in ("structure.png", "trajectory.png"):
        assert (run.reports / name).is_file()


def test_unknown_methods_are_refused(clip_checkpoint, tmp_path):
    result = prune(clip_checkpoint, tmp_path / "run", "--method", "wander")
    assert result.exit_code == 2
    assert "'wander' is unknown: choose from comp, wanda" in " ".join(result.stderr.split())


def test_unsupported_modes_of_a_method_are_refused(clip_checkpoint, tmp_path):
    with pytest.raises(CompExportError, match="wanda prunes parameters alone"):
        prune(clip_checkpoint, tmp_path / "run", "--method", "wanda", "--modes", "vt,lt")
    with pytest.raises(CompExportError, match="no mode 'cross_parameters'"):
        prune(clip_checkpoint, tmp_path / "run", "--method", "wanda", "--modes", "vt,cp")
    with pytest.raises(CompExportError, match=r"at most 0\.\d\d; choose a smaller --rate$"):
        prune(clip_checkpoint, tmp_path / "run", "--method", "wanda", rate="0.98")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "merge"), [("turbo", "similar"), ("madtp", "one"), ("crossget", "proportional")]
)
def test_merging_methods_from_the_command_line(clip_checkpoint, tmp_path, method, merge):
    """From the slim checkpoint through the graphs to their verification."""
    run = tmp_path / "run"
    result = prune(clip_checkpoint, run, "--method", method, "--json", rate="0.4")
    assert result.exit_code == 0, result.output
    plan, record = open_run(run).load_plan(), open_run(run).read_record()
    assert json.loads(result.stdout)["rate"] == plan.rate == pytest.approx(0.4, abs=0.005)
    assert record["modes"] == ["vision_tokens", "language_tokens"]
    assert {drop.merge for drop in plan.drops} == {merge}
    proof = ("verify", "--questions", "3", "--answer-seconds", "0")
    for arguments in (("onnx", "--no-check"), proof, ("inspect",), ("flops", "--plan")):
        shown = CliRunner().invoke(cli, [*arguments, str(run)], catch_exceptions=False)
        assert shown.exit_code == 0, shown.output
    report = json.loads((run / "reports" / "verify.json").read_text())
    assert all(link["ok"] for link in report["links"])


def test_merging_methods_refuse_a_llava(tmp_path):
    arguments = ["prune", "--rate", "0.4", "--out", str(tmp_path / "llava"), "--method"]
    reasons = {
        "turbo": "its language model",
        "madtp": "it aligns the tokens",
        "crossget": "it merges tokens within",
    }
    for method, reason in reasons.items():
        with pytest.raises(CompExportError, match=f"{method} is not for llava models: {reason}"):
            CliRunner().invoke(cli, [*arguments, method], catch_exceptions=False)
