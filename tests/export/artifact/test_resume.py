"""`comp-export onnx --resume` keeps complete artifacts and writes missing ones."""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.registry.families import FAMILIES
from export.graph.builder import Target
from export.latency.llava_blocks import LlavaBlocks
from export.latency.rate_for_time import sketched
from tests.comp.small import small_adapter


def call(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def cut(dense, strength, out):
    plan = sketched(LlavaBlocks.of(dense, Target(), 8, 0), FAMILIES[0].modes, strength, 16)
    plan.save(out.parent / "plan.json")
    assert call("cut", "--plan", out.parent / "plan.json", "--out", out).exit_code == 0
    return out


@pytest.fixture
def run(tmp_path):
    small_adapter().save(tmp_path / "dense")
    return cut(tmp_path / "dense", 0.4, tmp_path / "run")


def contents(directory):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


def test_only_what_is_missing_is_written(run):
    """After an interrupt between the two, the first artifact is complete and the second missing."""
    assert call("onnx", run, "--no-dense").exit_code == 0
    before = contents(run / "onnx")
    with pytest.raises(CompExportError, match="--resume to keep it"):
        call("onnx", run)
    record = json.loads(call("onnx", run, "--resume", "--json").stdout)
    assert record["kept"] == ["compressed"]
    assert set(record["artifacts"]) == {"compressed", "dense"}
    assert contents(run / "onnx") == before
    assert (run / "onnx-dense" / "manifest.json").is_file()
    whole = contents(run / "onnx-dense")
    again = json.loads(call("onnx", run, "--resume", "--json").stdout)
    assert again["kept"] == ["compressed", "dense"]
    assert contents(run / "onnx-dense") == whole
    assert again["artifacts"] == record["artifacts"]


def test_resuming_without_artifacts_writes_all(run):
    record = json.loads(call("onnx", run, "--resume", "--json").stdout)
    assert record["kept"] == []
    assert {"onnx", "onnx-dense"} <= {path.name for path in run.iterdir()}


def test_a_damaged_artifact_is_refused(run):
    assert call("onnx", run, "--no-dense").exit_code == 0
    data = run / "onnx" / "decoder_model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CompExportError, match=r"decoder_model\.onnx\.data"):
        call("onnx", run, "--resume")


def test_an_artifact_of_another_plan_is_refused(run, tmp_path):
    assert call("onnx", run, "--no-dense").exit_code == 0
    other = cut(tmp_path / "dense", 0.7, tmp_path / "other")
    (run / "onnx").rename(other / "onnx")
    with pytest.raises(CompExportError, match=r"another plan.*--force"):
        call("onnx", other, "--resume")


def test_force_with_resume_is_refused(run):
    with pytest.raises(CompExportError, match="give one of them"):
        call("onnx", run, "--force", "--resume")
