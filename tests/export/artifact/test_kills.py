"""After a kill at any moment of `onnx`, the next `onnx` continues and removes incomplete files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from export.artifact.load import load_artifact
from tests.comp.small import small_adapter
from tests.export.artifact.test_resume import cut

ONNX = ("--no-dense", "--no-check")


def onnx(run, *more):
    words = ["onnx", str(run), *ONNX, *more]
    return CliRunner().invoke(cli, words, catch_exceptions=False)


@pytest.fixture
def run(tmp_path):
    small_adapter().save(tmp_path / "dense")
    (tmp_path / "runs").mkdir()
    return cut(tmp_path / "dense", 0.4, tmp_path / "runs" / "run")


@pytest.mark.slow
def test_a_kill_before_any_change_of_files(run, tmp_path):
    """The next command sees the old artifact or the new one, always complete."""
    assert onnx(run).exit_code == 0
    copies = tmp_path / "copies"
    watched = (sys.executable, "-m", "tests.comp.snapshots", str(run.parent), str(copies))
    done = subprocess.run(
        [*watched, "onnx", str(run), *ONNX, "--force"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path.cwd(),
    )
    assert done.returncode == 0, done.stderr
    left = {path.name for path in run.iterdir()}
    seen = set()
    for copy in sorted(copies.iterdir()):
        out = copy / "run"
        seen.add((out / "onnx").exists())
        with pytest.raises(CompExportError, match="exists already"):
            onnx(out)
        load_artifact(out / "onnx")  # whole, by its hashes
        assert {path.name for path in out.iterdir()} == left, copy
    assert seen == {True, False}, "one kill came between the old one and the new one"
    shutil.rmtree(copies)


def test_leftovers_of_a_killed_export_are_removed(run):
    for name in (".onnx.01234567", ".onnx-dense.gone.abcdefgh"):
        (run / name).mkdir()
        (run / name / "decoder_model.onnx.data").write_bytes(bytes(99))
    assert onnx(run).exit_code == 0
    assert not list(run.glob(".*"))
