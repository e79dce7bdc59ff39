"""A kill at any moment of `prune` leaves a run that --resume or a plain start continues from."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.pipeline.run_folder import run_of
from comp.runs import RunDirectory, open_run
from comp.utils.files import write_text
from tests.comp.small_clip import random_clip

QUICK = ("--stages", "2", "--steps-per-stage", "0", "--recover", "none", "--batch-size", "4")
QUICK += ("--calibration", "4", "--validation", "4", "--dtype", "float32", "--device", "cpu")
RANDOM = re.compile(r"\.[a-z0-9_]{8}(?=/|$)")


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "dense"
    random_clip().save(path)
    return path


def words(dense, out, *more):
    return ["prune", "--model", str(dense), "--rate", "0.3", "--out", str(out), *QUICK, *more]


def prune(dense, out, *more):
    return CliRunner().invoke(cli, words(dense, out, *more), catch_exceptions=False)


def watched(folder, copies, arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.comp.snapshots", str(folder), str(copies), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path.cwd(),
    )
    assert done.returncode == 0, done.stderr
    return sorted(copies.iterdir())


def kind(copy):
    """Return the state without its random names, so that equal states are visited once."""
    return frozenset(
        (RANDOM.sub(".*", str(path.relative_to(copy))), path.is_file() and path.stat().st_size > 0)
        for path in copy.rglob("*")
    )


class Begun(Exception):
    """Raised instead of the work; says whether it would continue or start again."""


def begun(monkeypatch, dense, out, *more):
    def run_pruning(request, run, compute, options, progress, resume, examples):
        raise Begun("resumed" if resume else "started")

    with monkeypatch.context() as patched:
        patched.setattr("comp.pipeline.prune.run_pruning", run_pruning)
        with pytest.raises(Begun) as result:
            prune(dense, out, *more)
    return str(result.value)


def next_step(monkeypatch, dense, out):
    """Return the next command: ``--resume`` of an interrupted run, a plain start otherwise, or none."""
    run = RunDirectory(out)
    if out.is_dir() and run.is_interrupted:
        with pytest.raises(CompExportError, match="continue it with --resume"):
            prune(dense, out)
        assert begun(monkeypatch, dense, out, "--resume") == "resumed"
        return ["--resume"]
    with pytest.raises(CompExportError, match="nothing to resume"):
        prune(dense, out, "--resume")
    if run.record.is_file():
        with pytest.raises(CompExportError, match="exists: replace it with --force"):
            prune(dense, out)
        return None
    assert begun(monkeypatch, dense, out) == "started"
    return []


def state_of(copy):
    """Return the state that the next command continues from, without removed leftovers."""
    state = copy / "run" / ".state"
    return frozenset(path.name for path in state.glob("[!.]*"))


@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True], ids=["first", "forced"])
def test_a_kill_before_any_change_of_files(dense, tmp_path, monkeypatch, forced):
    """Every state can continue or start again; one of each set of equal states is run to the end."""
    # In this process, in the place of figures; the process that is killed draws them.
    monkeypatch.setattr("comp.pipeline.record.save_figures", reports)
    folder = tmp_path / "runs"
    folder.mkdir()
    more = ()
    if forced:  # over a run of another rate, with artifacts
        prune(dense, folder / "run", "--rate", "0.2")
        (folder / "run" / "onnx").mkdir()
        (folder / "run" / "onnx" / "manifest.json").write_text("{}")
        more = ("--force",)
    copies = watched(folder, tmp_path / "copies", words(dense, folder / "run", *more))
    whole = open_run(folder / "run")
    left = {path.name for path in whole.path.iterdir()}
    kinds = {kind(copy): copy for copy in copies}
    assert len(copies) > len(kinds) > 20
    carried_out = set()
    for copy in kinds.values():
        out = copy / "run"
        following = next_step(monkeypatch, dense, out)
        assert {path.name for path in out.glob(".*")} <= {".state"}, copy
        if following is None:
            assert open_run(out).load_plan() == whole.load_plan() or forced
            continue
        state = state_of(copy)
        if state in carried_out or (forced and carried_out):
            continue
        carried_out.add(state)
        prune(dense, out, *following)
        assert open_run(out).load_plan() == whole.load_plan(), copy
        assert open_run(out).stages.read_text() == whole.stages.read_text()
        assert {path.name for path in out.iterdir()} == left, copy
        assert open_run(copy / "latest").path.name == "run"
        assert not list(copy.glob(".*")), copy
    assert len(carried_out) >= (1 if forced else 4)


def test_incomplete_states_are_not_resumed(dense, tmp_path):
    """A state without its request belongs to a run that was being removed."""
    out = tmp_path / "run"
    (out / ".state").mkdir(parents=True)
    (out / ".state" / "search.json").write_text("{}")
    with pytest.raises(CompExportError, match="nothing to resume"):
        prune(dense, out, "--resume")
    assert prune(dense, out).exit_code == 0


def test_a_state_of_other_weights_is_refused(dense, tmp_path, monkeypatch):
    model = shutil.copytree(dense, tmp_path / "model")
    monkeypatch.setattr("comp.pipeline.record.save_figures", _stop)
    with pytest.raises(RuntimeError, match="stopped"):
        prune(model, tmp_path / "run")
    monkeypatch.undo()
    random_clip(seed=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", model)
    with pytest.raises(
        CompExportError, match=r"was started with other weights than .*model has now"
    ):
        prune(model, tmp_path / "run", "--resume")
    shutil.copy(dense / "model.safetensors", model)
    assert prune(model, tmp_path / "run", "--resume").exit_code == 0


def reports(run):
    for name in ("trajectory.png", "structure.png"):
        write_text(run.reports / name, "drawn")


def _stop(*_):
    raise RuntimeError("stopped")


def test_the_default_place_names_another_seed(dense, tmp_path, monkeypatch):
    monkeypatch.chdir(dense)
    for model in (str(dense), ".", "../dense", f"{dense}/"):
        assert run_of(None, model, 0.62, 0).path == Path("runs/dense-0.62")
    assert run_of(None, "owner/llava", 0.62, 3).path == Path("runs/llava-0.62-seed3")
    assert run_of(Path("here"), str(dense), 0.62, 3).path == Path("here")
    (tmp_path / "latest").symlink_to("run")  # is replaced by its own name
    assert run_of(tmp_path / "latest", str(dense), 0.62, 0).path == tmp_path / "run"


@pytest.mark.parametrize("what", ["directory", "file"])
def test_an_occupied_link_name_is_refused_before_the_work(dense, tmp_path, what):
    latest = tmp_path / "latest"
    latest.mkdir() if what == "directory" else latest.write_text("")
    with pytest.raises(CompExportError, match=f"latest is a {what}, and `prune` makes the link"):
        prune(dense, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(CompExportError, match=r"is the link to the newest run|is a file"):
        prune(dense, latest)
