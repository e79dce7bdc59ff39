"""`comp-export prune` as a user runs it, on a small random checkpoint."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from comp.checkpoints.slices import cut_of
from comp.cli import cli
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions
from comp.plan import PruningPlan
from comp.runs import RunDirectory, open_run
from tests.comp.small import HEAD_DIM
from tests.drawing import drawn

QUICK = ("--stages", "3", "--steps-per-stage", "2", "--recover-steps", "4", "--batch-size", "4")
QUICK += ("--calibration", "8", "--validation", "8", "--dtype", "float32", "--device", "cpu")


def prune(checkpoint, out, *more, rate="0.4"):
    arguments = ["prune", "--model", str(checkpoint), "--rate", rate, "--out", str(out)]
    arguments += [*QUICK, "--json", *more]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    with drawn():
        return prune(checkpoint, out), open_run(out)


def test_a_run_directory_holds_everything(run):
    printed, directory = run
    plan = directory.load_plan()
    assert abs(printed["rate"] - 0.4) < 0.01
    assert plan.rate == printed["rate"] == 1 - plan.macs / plan.macs_dense
    assert printed["macs"] == {"dense": plan.macs_dense, "compressed": plan.macs}
    assert open_run(directory.path.parent / "latest").path == directory.path
    lines = [json.loads(line) for line in directory.stages.read_text().splitlines()]
    assert [line["stage"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(a["macs"] > b["macs"] for a, b in itertools.pairwise(lines))
    assert {line["mode"] for line in lines} <= {
        "vision_tokens",
        "language_tokens",
        "language_parameters",
    }
    assert not (directory.path / ".state").exists()
    assert (directory.reports / "trajectory.png").is_file()
    assert (directory.checkpoint / "tokenizer.json").is_file()


def test_a_run_records_its_options(run, checkpoint):
    recorded = run[1].read_record()["options"]
    assert set(recorded) == set(PruneOptions.model_fields)
    assert (recorded["model"], recorded["stages"]) == (str(checkpoint), 3)
    assert (recorded["align"], recorded["dtype"]) == (None, "float32")


def test_the_slim_checkpoint_has_the_plans_sizes(run):
    _, directory = run
    tensors = load_file(directory.checkpoint / "model.safetensors")
    for block in directory.load_plan().part("language"):
        up = tensors[f"language_model.model.layers.{block.index}.mlp.up_proj.weight"]
        assert up.shape[0] == len(block.kept_channels)
        assert len(block.kept_channels) % 16 == 0


def test_the_same_seed_gives_the_same_plan(run, checkpoint, tmp_path):
    prune(checkpoint, tmp_path / "again")
    again = open_run(tmp_path / "again")
    assert again.load_plan() == run[1].load_plan()


KILLED = """
import os, sys
import comp.methods.comp as method
real = method.save_search
def killing(folder, adapter, saved, line):
    real(folder, adapter, saved, line)
    if saved.stage == 2:
        os.kill(os.getpid(), 9)
method.save_search = killing
from comp.cli import main
main(sys.argv[1:])
"""


def test_a_killed_run_resumes_to_the_same_plan(run, checkpoint, tmp_path):
    out = tmp_path / "killed"
    arguments = ["prune", "--model", str(checkpoint), "--rate", "0.4", "--out", str(out), *QUICK]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=Path.cwd(), check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (out / ".state" / "search.json").is_file()
    with pytest.raises(CompExportError, match=r"is not finished: run\.json is missing"):
        open_run(out)
    with pytest.raises(CompExportError, match="--resume"):
        prune(checkpoint, out)
    with pytest.raises(CompExportError, match=r"search\.stages 3, not 4"):
        prune(checkpoint, out, "--resume", "--stages", "4")
    prune(checkpoint, out, "--resume")
    resumed, whole = open_run(out), run[1]
    assert resumed.load_plan() == whole.load_plan()
    assert resumed.stages.read_text() == whole.stages.read_text()
    ours, theirs = (load_file(r.checkpoint / "model.safetensors") for r in (resumed, whole))
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_run(checkpoint, tmp_path):
    out = tmp_path / "interrupted"
    command = [
        sys.executable,
        "-m",
        "comp.cli",
        "prune",
        "--model",
        str(checkpoint),
        "--rate",
        "0.4",
    ]
    command += ["--out", str(out), *QUICK, "--stages", "20"]
    # A shell's background job ignores SIGINT, and so would its children.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = out / ".state" / "search.json"
    deadline = time.monotonic() + 300
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert state.exists()


@pytest.mark.parametrize(
    ("option", "check"),
    [
        ("--no-cip", lambda r: r["importance"]["cip"] is False),
        ("--no-cit", lambda r: r["importance"]["cit"] is False),
        ("--no-cas", lambda r: r["strategy"]["cost_aware"] is False),
        ("--no-exploration", lambda r: r["strategy"]["exploration"] == 0),
        ("--no-history", lambda r: r["strategy"]["history"] == 0),
        ("--undo", lambda r: r["strategy"]["undo"] is True),
    ],
)
def test_switches_are_recorded_in_the_run(checkpoint, tmp_path, option, check):
    prune(checkpoint, tmp_path / "run", option, "--recover", "none", rate="0.2")
    assert check(open_run(tmp_path / "run").read_record()["request"]["search"])


def test_calibration_only_changes_no_kept_weight(checkpoint, tmp_path):
    prune(checkpoint, tmp_path / "run", "--recover", "none", "--modes", "vt,lt", rate="0.2")
    slim = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    dense = load_file(checkpoint / "model.safetensors")
    assert slim.keys() == dense.keys()
    assert all(torch.equal(slim[name], dense[name]) for name in slim)


@pytest.mark.parametrize("refitted", [True, False])
def test_calibration_only_refits_output_projections_alone(checkpoint, tmp_path, refitted):
    more = () if refitted else ("--no-reconstruction",)
    prune(checkpoint, tmp_path / "run", "--recover", "none", "--modes", "vp,lp", *more, rate="0.2")
    run = open_run(tmp_path / "run")
    assert run.read_record()["reconstruction"] is refitted
    slim, dense = (
        load_file(folder / "model.safetensors") for folder in (run.checkpoint, checkpoint)
    )
    plan, head_dim = run.load_plan(), {"language": HEAD_DIM, "vision": HEAD_DIM}
    changed = set()
    for name, tensor in dense.items():
        kept = cut_of(name, plan, head_dim)
        rows = tensor if kept is None else tensor.index_select(kept.axis, torch.tensor(kept.keep))
        if not torch.equal(slim[name], rows):
            changed.add(name.split(".")[-2])
    assert changed == ({"o_proj", "down_proj", "out_proj", "fc2"} if refitted else set())


def test_vision_tower_parameters_are_pruned(checkpoint, tmp_path):
    prune(checkpoint, tmp_path / "run", "--modes", "vp,lp", rate="0.3")
    plan = open_run(tmp_path / "run").load_plan()
    assert any(len(b.kept_key_value_heads) < b.num_key_value_heads for b in plan.part("vision"))
    assert plan.drops == ()
    assert abs(plan.rate - 0.3) < 0.01


def test_lora_recovers_and_is_merged(checkpoint, tmp_path):
    prune(checkpoint, tmp_path / "run", "--recover", "lora", "--lora-rank", "4")
    slim = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    dense = load_file(checkpoint / "model.safetensors")
    assert slim.keys() == dense.keys()
    embedding = "language_model.model.embed_tokens.weight"
    assert torch.equal(slim[embedding], dense[embedding])
    query = "language_model.model.layers.0.self_attn.q_proj.weight"
    if slim[query].shape == dense[query].shape:
        assert not torch.equal(slim[query], dense[query])


@pytest.mark.parametrize("rate", ["0", "1", "1.5", "-0.2"])
def test_rate_outside_range_is_refused(checkpoint, tmp_path, rate):
    with pytest.raises(CompExportError, match=r"outside \(0, 1\)"):
        prune(checkpoint, tmp_path / "run", rate=rate)
    assert not (tmp_path / "run").exists()


def test_an_unreachable_rate_names_the_largest_and_the_modes_that_reach_it(checkpoint, tmp_path):
    most = r"at most 0\.\d\d \(0\.\d\d with --modes [vtlp,]+\)"
    with pytest.raises(CompExportError, match=most):
        prune(checkpoint, tmp_path / "run", "--modes", "lt", rate="0.9")
    # A refused run does not block its place for the next one. A running one does.
    assert not (tmp_path / "run").exists()
    needed = r"rate 0\.5 needs --modes [vtlp,]+: lt reach at most 0\.\d\d"
    with pytest.raises(CompExportError, match=needed):
        prune(checkpoint, tmp_path / "run", "--modes", "lt", rate="0.5")
    RunDirectory(tmp_path / "run").begin({})
    with pytest.raises(CompExportError, match="holds an interrupted run"):
        prune(checkpoint, tmp_path / "run", "--modes", "vt", rate="0.9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--modes", "xx"), "have no mode 'xx'"),
        (("--data", "none.jsonl"), r"none\.jsonl"),
        (("--latency-table", "none.json"), r"none\.json"),
        (("--device-map", "auto", "--stream"), "--stream"),
    ],
)
def test_a_refused_run_leaves_nothing(checkpoint, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompExportError, match=message):
        prune(checkpoint, tmp_path / "runs" / "refused", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_lacks_a_package_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    monkeypatch.setattr("comp.pipeline.prune.search_and_cut", missing)
    with pytest.raises(ModuleNotFoundError):
        prune(checkpoint, tmp_path / "runs" / "refused")
    assert list(tmp_path.iterdir()) == []


def test_runs_are_not_overwritten_without_force(run, checkpoint):
    directory = run[1]
    with pytest.raises(CompExportError, match="--force"):
        prune(checkpoint, directory.path)
    before = directory.plan_file.read_text()
    # A forced run that fails leaves the old one unchanged.
    with pytest.raises(CompExportError, match="at most"):
        prune(checkpoint, directory.path, "--force", "--modes", "lt", rate="0.9")
    assert open_run(directory.path).plan_file.read_text() == before


def test_plans_of_another_version_are_refused(run, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(run[1].plan_file.read_text()), "version": 99}))
    with pytest.raises(CompExportError, match="version 99"):
        PruningPlan.load(path)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("config.json", '{"model_type": "bert"}', "'bert'"),
        ("config.json", "{", "not JSON"),
        ("model.safetensors", "nothing", "is truncated or no safetensors file"),
        ("model.safetensors", None, r"no model\.safetensors"),
        ("tokenizer.json", None, "processor|tokenizer"),
        ("processor_config.json", None, "processor"),
    ],
)
def test_broken_checkpoints_are_refused_by_name(checkpoint, tmp_path, name, wrong, message):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / name).unlink()
    if wrong is not None:
        (broken / name).write_text(wrong)
    with pytest.raises(CompExportError, match=message):
        prune(broken, tmp_path / "run")


def test_own_data_is_used(checkpoint, tmp_path):
    from tests.comp.small import questions

    lines = []
    for number, example in enumerate(questions(40)):
        example.image.save(tmp_path / f"{number}.png")
        entry = {"image": f"{number}.png", "question": example.question, "answer": example.answer}
        lines.append(json.dumps(entry))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    data = ("--data", str(tmp_path / "mine.jsonl"), "--images", str(tmp_path))
    prune(checkpoint, tmp_path / "run", *data)
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:5]))
    few = ("--data", str(tmp_path / "few.jsonl"), "--images", str(tmp_path))
    with pytest.raises(CompExportError, match="too few"):
        prune(checkpoint, tmp_path / "run2", *few)
