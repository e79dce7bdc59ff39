"""Quickstart runs missing steps, reports finished ones, and stops at a failure."""

import json
import os
import time

import click
import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.pipeline.example_run import COPIED
from comp.runs import RUN_VERSION, RunDirectory
from demo import quickstart
from demo.quickstart import opening, perform, steps
from export.artifact.manifest import Verified
from export.proof.chain import mark
from serve.bench import compare as bench
from serve.bench.cold_start import Probe
from serve.commands.bench import command as bench_command
from serve.commands.verify import command as verify_command

SHARED = ("--seed", "0")


@pytest.fixture
def group():
    """A command line whose commands record their calls."""
    made = click.Group("comp-export")
    made.called = []

    def add(name):
        @made.command(name, context_settings={"ignore_unknown_options": True})
        @click.argument("words", nargs=-1, type=click.UNPROCESSED)
        @click.pass_context
        def command(context, words):
            made.called.append((name, words))
            click.echo(f"{name} speaks")
            context.exit(made.statuses.get(name, 0))

    made.statuses = {}
    for verb in ("prune", "onnx", "verify", "eval", "bench"):
        add(verb)
    return made


def made_of(run, force=False):
    return steps(run, "tiny-random", 0.4, 50, SHARED, force)


def everything(run, group, messages, **options):
    return [
        perform(step, group, quiet=False, say=messages.append) for step in made_of(run, **options)
    ]


@pytest.fixture
def finished(run, dense_artifact, compressed_artifact, tmp_path):
    """A run with every report, newer than its artifacts."""
    import shutil

    path = tmp_path / "finished"
    shutil.copytree(run, path)
    record = {"version": RUN_VERSION, "model": "tiny-random", "rate_asked": 0.4}
    (path / "run.json").write_text(json.dumps(record))
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "config.json").write_text("{}")
    (path / "plan.json").write_text("{}")
    os.utime(path / "plan.json", (0, 0))
    actual = RunDirectory(path)
    for directory in (actual.onnx, actual.onnx_dense):
        mark(directory, Verified(ok=True, report_sha256="0" * 64))
    for name in ("verify", "eval", "bench"):
        actual.write_report(name, {})
    return actual


def test_a_fresh_start_runs_all_commands_in_order(tmp_path, group):
    run = RunDirectory(tmp_path / "new")
    messages = []
    prune = made_of(run)[0]
    outcome = perform(prune, group, quiet=False, say=messages.append)
    assert not outcome.skipped
    words = ("--model", "tiny-random", "--rate", "0.4", "--out", str(run.path), *SHARED)
    assert group.called == [("prune", words)]
    assert [step.verb for step in made_of(run)] == ["prune", "onnx", "verify", "eval", "bench"]


def test_an_interrupted_prune_is_resumed(tmp_path, group):
    run = RunDirectory(tmp_path / "half")
    run.begin({})
    assert "--resume" in made_of(run)[0].arguments
    assert "--force" in made_of(run, force=True)[0].arguments


def test_finished_steps_are_skipped_with_a_message(finished, group):
    messages = []
    outcomes = everything(finished, group, messages)
    assert all(outcome.skipped for outcome in outcomes)
    assert group.called == []
    assert messages == [
        f"{v}: done before, skipped" for v in ("prune", "onnx", "verify", "eval", "bench")
    ]


def test_reports_older_than_their_artifacts_are_made_again(finished, group):
    later = time.time() + 60
    os.utime(finished.onnx / "manifest.json", (later, later))
    everything(finished, group, [])
    assert [name for name, _ in group.called] == ["eval", "bench"]


def test_damaged_artifacts_are_exported_again(finished, group):
    (finished.onnx / "tokenizer.json").write_text("{}")
    everything(finished, group, [])
    assert group.called[0] == ("onnx", (str(finished.path), "--force", *SHARED))


def test_force_repeats_finished_steps(finished, group):
    everything(finished, group, [], force=True)
    assert group.called[0][0] == "prune"
    assert "--force" in group.called[0][1]


def test_a_run_of_another_model_is_refused(finished, group):
    other = steps(finished, "tiny-random", 0.7, 50, SHARED, force=False)
    with pytest.raises(CompExportError, match=r"at rate 0\.4, not .* rate 0\.7"):
        perform(other[0], group, quiet=False, say=lambda _: None)


def test_an_example_is_copied_exported_and_verified(tmp_path, group, monkeypatch):
    run, example = RunDirectory(tmp_path / "new"), RunDirectory(tmp_path / "tiny-random-0.4")
    copied = []
    monkeypatch.setattr(quickstart, "copy_example", lambda *call: copied.append(call))
    planned = steps(run, "tiny-random", 0.4, 50, SHARED, force=False, example=example)
    assert [step.verb for step in planned] == ["copy", "onnx", "verify"]
    messages = []
    outcome = perform(planned[0], group, quiet=False, say=messages.append)
    assert not outcome.skipped
    assert copied == [(example, run, False)]
    assert messages == [f"copy: tiny-random-0.4 to {run.path}"]
    assert group.called == []
    assert planned[2].arguments[1:3] == ("--questions", "50")


def test_a_finished_run_is_not_replaced_by_the_example_without_force(finished, group):
    example = RunDirectory(finished.path.parent / "example")
    planned = steps(finished, "tiny-random", 0.4, 50, SHARED, force=False, example=example)
    assert all(perform(step, group, quiet=False, say=lambda _: None).skipped for step in planned)


def test_the_whole_job_prunes_a_copy_again(finished, group):
    record = finished.read_record() | {COPIED: "tiny-random-0.4 of comp-export 1"}
    finished.record.write_text(json.dumps(record))
    first = made_of(finished)[0]
    assert not perform(first, group, quiet=False, say=lambda _: None).skipped
    assert group.called[0][0] == "prune"
    assert "--force" in group.called[0][1]


def test_the_opening_says_what_is_done_and_how_long_it_takes(tmp_path):
    run, example = RunDirectory(tmp_path / "new"), RunDirectory(tmp_path / "example")
    whole = opening(made_of(run), run, None)
    assert whole.startswith(f"quickstart: prune, onnx, verify, eval and bench into {run.path}: ")
    example.path.mkdir()
    record = {"steps": {"recovery": 396}}
    example.record.write_text(json.dumps(record))
    planned = steps(run, "tiny-random", 0.4, 50, SHARED, force=False, example=example)
    said = opening(planned, run, example)
    assert said.startswith(f"quickstart: copy, onnx and verify into {run.path}: about ")
    assert "396 steps of recovery" in said


def test_a_failing_command_ends_quickstart(tmp_path, group, capsys):
    group.statuses["prune"] = 3
    step = made_of(RunDirectory(tmp_path / "new"))[0]
    with pytest.raises(CompExportError, match="ended with status 3"):
        perform(step, group, quiet=True, say=lambda _: None)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "prune speaks" in printed.err


@pytest.mark.slow
def test_the_example_run_is_ready_to_be_shown(tmp_path, monkeypatch):
    """As ``make demo`` does, with fewer questions."""
    monkeypatch.setattr(quickstart, "EXAMPLE_QUESTIONS", "3")
    command = ["quickstart", "--out", str(tmp_path / "mine"), "--device", "cpu", "--json"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    actual = json.loads(result.stdout)
    assert [step["verb"] for step in actual["steps"]] == ["copy", "onnx", "verify"]
    assert actual["reports"]["verify"]["ok"]
    assert actual["reports"]["eval"]["compressed"]["accuracy"] >= 0.9
    assert actual["reports"]["bench"] is None
    again = CliRunner().invoke(cli, command[:-1], catch_exceptions=False)
    assert again.stderr.count("done before, skipped") == 3
    assert "quickstart --whole" in again.stderr + again.stdout


# Steps after pruning, of another task. A LLaVA's whole job is run by hand: it takes a quarter of an hour.
@pytest.mark.slow
def test_steps_after_pruning_a_clip(run_of, monkeypatch):
    """Fresh processes of bench are left out: tests/test_clip_run.py measures them."""
    monkeypatch.setattr(bench, "probe", lambda *words: Probe(1.0, 1.0, 1.0))
    fewer = ((verify_command, "questions", 8), (bench_command, "repeats", 2))
    for verb, option, count in fewer:
        (chosen,) = (param for param in verb.params if param.name == option)
        monkeypatch.setattr(chosen, "default", count)
    run = run_of("clip")
    model = json.loads((run / "run.json").read_text())["model"]
    words = ["--model", model, "--rate", "0.5", "--out", str(run)]
    command = ["quickstart", *words, "--limit", "12", "--device", "cpu", "--json"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    actual = json.loads(result.stdout)
    skipped = {step["verb"]: step["skipped"] for step in actual["steps"]}
    assert skipped == {"prune": True, "onnx": True, "verify": False, "eval": False, "bench": False}
    assert actual["reports"]["verify"]["ok"]
    assert actual["reports"]["verify"]["links"][0]["questions"] == 8
    assert actual["reports"]["eval"]["compressed"]["n"] == 24  # twelve pairs, both ways
    assert actual["reports"]["bench"]["workload"]["task"] == "retrieval"
    again = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)
    assert all(step["skipped"] for step in again["steps"])
