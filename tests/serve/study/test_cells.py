"""Cells of a study: order, resumption, failures, clean-up; the report uses their records."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.utils.files import write_text
from serve.study import cells as cells_module
from serve.study import progress as progress_module
from serve.study.processes import StepError, run_process
from tests.serve.studied import FAILED, Steps

HEAD = 'model = "tiny-llava"\nrates = [0.5, 0.8]\nseeds = [0, 1, 2]\nmethods = ["comp"]\n'
ROWS = '[variants.tokens]\nmodes = "vt,lt"\n[variants.heads]\nmodes = "lp"\n'
ROWS += "[variants.no-cip]\nno_cip = true\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Return a function that runs a study with stand-ins for its processes."""
    file, folder = tmp_path / "mine.toml", tmp_path / "folder"

    def run(steps, *more, text=HEAD):
        monkeypatch.setattr(cells_module, "run_process", steps)
        file.write_text(text)
        words = ["study", str(file), "--out", str(folder), *more]
        result = CliRunner().invoke(cli, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            result.error = result.exception
        return result

    run.folder = folder
    return run


def names(steps, step):
    return [cell for cell, taken in steps.taken if taken == step]


def test_every_cell_runs_once_and_the_dense_model_once(study):
    steps = Steps()
    result = study(steps)
    assert result.exit_code == 0, result.output
    cells = [f"comp-{rate}-seed{seed}" for seed in range(3) for rate in (0.5, 0.8)]
    for step in ("prune", "onnx", "measure"):
        assert names(steps, step) == cells
    assert names(steps, "dense") == cells[:1]
    assert "6/6 comp-0.8-seed2: 50.0% in" in result.stderr
    again = Steps()
    assert study(again).exit_code == 0
    assert again.taken == []


def test_own_data_is_measured_on_the_part_that_each_run_held_out(study, tmp_path):
    lines, steps = tmp_path / "lines.jsonl", Steps()
    lines.write_text('{"image": "a.png", "question": "what?", "answer": "that"}\n')
    assert study(steps, text=HEAD + f'data = "{lines}"\n').exit_code == 0
    asked = [json.loads(words[3]) for words in steps.words if "serve.study.measuring" in words]
    assert {request["data"] for request in asked} == {None}
    runs = [study.folder / "runs" / f"comp-{rate}-seed{n}" for n in range(3) for rate in (0.5, 0.8)]
    assert {request["parted"] for request in asked} == set(map(str, runs))
    other = Steps()
    text = HEAD + f'data = "{lines}"\ntest_data = "{lines}"\n'
    assert study(other, "--out", str(tmp_path / "other"), text=text).exit_code == 0
    asked = [json.loads(words[3]) for words in other.words if "serve.study.measuring" in words]
    assert {(request["data"], request["parted"]) for request in asked} == {(str(lines), None)}


def test_cells_are_made_in_parallel_and_measured_one_by_one(study, monkeypatch):
    monkeypatch.setattr(progress_module, "AHEAD", 2)
    monkeypatch.setattr(progress_module, "usable_cores", lambda: 6)
    steps = Steps()
    steps.broken = {("comp-0.8-seed1", "prune"): FAILED}
    result = study(steps, "--jobs", "2")
    assert result.exit_code == 1
    cells = [f"comp-{rate}-seed{seed}" for seed in range(3) for rate in (0.5, 0.8)]
    good = [cell for cell in cells if cell != "comp-0.8-seed1"]
    assert sorted(names(steps, "prune")) == sorted(cells)  # what failed is not tried again
    assert sorted(names(steps, "onnx")) == sorted(good)
    assert names(steps, "measure") == good
    # The first four are made before the first is measured, and the others after the fourth is.
    order = [
        (cell in cells[:4], step == "measure") for cell, step in steps.taken if step != "dense"
    ]
    made, measured = 4 + 3, 3
    assert order[: made + measured] == [(True, False)] * made + [(True, True)] * measured
    assert {steps.threads[cell, "prune"] for cell in cells} == {3}
    assert {steps.threads[cell, "measure"] for cell in good} == {None}
    record = json.loads((study.folder / "cells" / "comp-0.8-seed1.json").read_text())
    assert (record["step"], record["reason"]) == ("prune", str(FAILED))
    assert "prune" in record["seconds"]
    assert study(Steps(), "--jobs", "2", "--retry").exit_code == 0


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_parallel_cells_end_with_the_study(tmp_path, ending):
    process = subprocess.Popen([sys.executable, "-c", TOGETHER, str(tmp_path)])
    logs = [tmp_path / name for name in "ab"]
    while not all(log.is_file() and log.read_text() for log in logs):
        time.sleep(0.05)
        assert process.poll() is None
    children = [int(log.read_text()) for log in logs]
    process.send_signal(ending)
    assert process.wait(20) != 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (tmp_path / "c").exists()  # never begun


TOGETHER = """
import sys
from functools import partial
from pathlib import Path
from serve.study.processes import ended_by_signals, run_process
from serve.study.side_by_side import side_by_side
sleeping = "import os, sys, time; sys.stderr.write(str(os.getpid())); sys.stderr.flush(); time.sleep(60)"
words = [sys.executable, "-c", sleeping]
with ended_by_signals():
    side_by_side([partial(run_process, words, Path(sys.argv[1]) / name, 0) for name in "abc"], 2)
"""


def test_a_process_has_the_given_number_of_threads(tmp_path):
    words = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    assert run_process(words, tmp_path / "log", 0, threads=3) == "3\n"


def test_prune_gets_the_options_of_the_file(study):
    steps = Steps()
    text = HEAD + "[prune]\nstages = 4\nno_history = false\n[variants.no-cip]\nno_cip = true\n"
    study(steps, "--device", "cpu", text=text)
    words = next(words for words in steps.words if "--no-cip" in words)
    assert words[1:4] == ["-m", "comp.cli", "prune"]
    phrase = " ".join(words[4:])
    assert "--model tiny-llava --method comp --rate 0.5 --seed 0" in phrase
    assert "--device cpu" in phrase
    assert "--stages 4" in phrase
    assert "--no-history" not in phrase
    assert sum("--no-cip" in words for words in steps.words) == 6


@pytest.mark.parametrize("step", ["prune", "onnx", "dense", "measure"])
def test_an_interrupted_study_resumes(study, step):
    """After Ctrl-C at any step, finished steps are not repeated, and prune continues from its state."""
    cell = "comp-0.5-seed0" if step == "dense" else "comp-0.8-seed0"
    first = Steps()
    first.broken[cell, step] = KeyboardInterrupt()
    assert study(first).exit_code == 1  # of click's runner; the program's is 130
    assert first.taken[-1] == (cell, step)
    assert not (study.folder / "report.md").exists()
    second = Steps()
    result = study(second)
    assert result.exit_code == 0, result.output
    assert second.taken[0] == (cell, step)
    if step == "prune":
        assert "--resume" in second.words[0]
    over = [taken for taken in first.taken if taken != (cell, step)]
    assert not set(over) & set(second.taken)
    assert len(set(over) | set(second.taken)) == 6 * 3 + 1


def test_a_study_interrupted_between_cells_resumes(study, monkeypatch):
    first = Steps()
    first.broken["comp-0.8-seed0", "prune"] = KeyboardInterrupt()
    study(first)
    run = study.folder / "runs" / "comp-0.8-seed0"
    assert (run / ".state" / "request.json").is_file()
    (run / ".state" / "request.json").unlink()  # killed before prune had written its state
    second = Steps()
    monkeypatch.setattr(Steps, "prune", _fresh(Steps.prune))
    assert study(second).exit_code == 0
    assert "--resume" not in second.words[0]


def _fresh(prune):
    def checked(self, cell, rest, wrong):
        out = Path(rest[rest.index("--out") + 1])
        assert not out.exists(), "prune refuses a folder that is there"
        return prune(self, cell, rest, wrong)

    return checked


def test_a_row_can_be_pruned_by_time(study):
    """Its target is the remaining time, not the FLOPs."""
    text = HEAD + '[variants.time]\ncost = "latency"\nlatency_table = "table.json"\n'
    result = study(Steps(off={"time-0.5-seed1": 0.02}), text=text)
    assert "1 of 12 cells failed, time-0.5-seed1 at prune" in str(result.error)
    report = (study.folder / "report.md").read_text()
    assert "the predicted time left is +2.0% from the target, tolerated are 1.0%" in report


def test_a_failed_cell_is_reported_and_the_rest_run(study):
    steps = Steps(off={"comp-0.5-seed1": 0.02})
    steps.broken["comp-0.8-seed0", "prune"] = FAILED
    steps.broken["comp-0.5-seed2", "measure"] = StepError("ended by SIGKILL: not enough memory?")
    result = study(steps)
    assert isinstance(result.error, CompExportError)
    assert "3 of 6 cells failed, comp-0.8-seed0 at prune (rate 0.8 is out of reach" in str(
        result.error
    )
    report = (study.folder / "report.md").read_text()
    assert "3 of 6 cells are done, **3 failed**" in report
    assert "| comp-0.8-seed0 | prune | rate 0.8 is out of reach: at most 0.71 |" in report
    assert "| comp-0.5-seed2 | measure | ended by SIGKILL: not enough memory? |" in report
    missed = (
        "its rate is 0.4900, not 0.5: the FLOPs left are +2.0% from the target, tolerated are 1.0%"
    )
    assert f"| comp-0.5-seed1 | prune | {missed} |" in report

    assert (
        study(again := Steps()).exit_code == 1
    )  # they are finished, and not retried automatically
    assert again.taken == []
    retried = Steps(off={"comp-0.5-seed1": 0.02})
    result = study(retried, "--retry")
    assert names(retried, "prune") == ["comp-0.8-seed0"]
    assert names(retried, "measure") == ["comp-0.8-seed0", "comp-0.5-seed2"]
    assert "1 of 6 cells failed, comp-0.5-seed1" in str(result.error)
    assert study(Steps(), "--report-only").exit_code == 0


def test_a_study_without_results_is_an_error_with_the_reason(study):
    steps = Steps()
    for seed in range(3):
        for rate in (0.5, 0.8):
            steps.broken[f"comp-{rate}-seed{seed}", "prune"] = FAILED
    assert "no cell of" in str(study(steps).error)
    assert "comp-0.5-seed0 failed at prune: rate 0.8 is out of reach" in str(study(Steps()).error)


def test_finished_cells_keep_only_small_files(study):
    study(Steps())
    run = study.folder / "runs" / "comp-0.5-seed0"
    assert {path.name for path in run.iterdir()} == {"run.json", "plan.json"}
    assert (study.folder / "dense" / "onnx" / "manifest.json").is_file()


def test_keep_runs_keeps_whole_runs(study):
    study(Steps(), text="keep_runs = true\n" + HEAD)
    run = study.folder / "runs" / "comp-0.5-seed0"
    assert (run / "checkpoint" / "model.safetensors").is_file()
    assert (run / "onnx" / "manifest.json").is_file()
    dense = run / "onnx-dense"
    assert dense.resolve() == (study.folder / "dense" / "onnx").resolve()
    study(Steps(), text=HEAD)  # no longer kept
    assert not dense.is_symlink()
    assert not (run / "checkpoint").exists()


def test_results_of_other_settings_are_not_mixed(study):
    study(Steps())
    with_more = HEAD.replace("[0, 1, 2]", "[0, 1, 2, 3]")
    more = Steps()
    assert study(more, text=with_more).exit_code == 0  # a larger grid uses the existing cells
    assert names(more, "prune") == ["comp-0.5-seed3", "comp-0.8-seed3"]
    steps = Steps()
    result = study(steps, text=HEAD + "[prune]\nstages = 4\n")
    phrase = r"comp-0.5-seed0.json was made with prune.stages left out, the study says 4: .*--out"
    with pytest.raises(CompExportError, match=phrase):
        raise result.error
    result = study(steps, text=HEAD + "[evaluation]\nlimit = 10\n")
    assert "dense.json was made with evaluation.limit 2000, the study says 10" in str(result.error)
    assert steps.taken == []


def test_a_cell_started_with_other_settings_starts_again(study, monkeypatch):
    first = Steps()
    first.broken["comp-0.5-seed0", "prune"] = KeyboardInterrupt()
    study(first)
    monkeypatch.setattr(Steps, "prune", _fresh(Steps.prune))
    second = Steps()
    assert study(second, text=HEAD + "[prune]\nstages = 4\n").exit_code == 0
    assert "--resume" not in second.words[0]
    # A record was deleted to repeat its cell: the old run is not used.
    (study.folder / "cells" / "comp-0.5-seed0.json").unlink()
    third = Steps()
    assert study(third, text=HEAD + "[prune]\nstages = 4\n").exit_code == 0
    assert third.taken == [("comp-0.5-seed0", step) for step in ("prune", "onnx", "measure")]


def test_a_damaged_record_is_named(study):
    study(Steps())
    (study.folder / "cells" / "comp-0.8-seed1.json").write_text("{")
    assert "comp-0.8-seed1.json cannot be read" in str(study(Steps()).error)


# Accuracies by seed 0, 1, 2; at 0.8 the heads fail with seed 2.
MEASURED = {
    ("comp", 0.5): (0.80, 0.82, 0.87),
    ("comp", 0.8): (0.70, 0.72, 0.74),
    ("tokens", 0.5): (0.79, 0.82, 0.85),
    ("tokens", 0.8): (0.60, 0.61, 0.65),
    ("heads", 0.5): (0.40, 0.42, 0.41),
    ("heads", 0.8): (0.66, 0.67, 0.99),
    ("no-cip", 0.5): (0.90, 0.92, 0.97),
    ("no-cip", 0.8): (0.70, 0.71, 0.72),
}


@pytest.fixture
def report(study):
    accuracy = {
        f"{row}-{rate:g}-seed{seed}": value
        for (row, rate), values in MEASURED.items()
        for seed, value in enumerate(values)
    }
    steps = Steps(accuracy)
    steps.broken["heads-0.8-seed2", "prune"] = FAILED
    study(steps, text=HEAD + ROWS)
    result = study(Steps(), "--report-only", "--json", text=HEAD + ROWS)
    assert result.exit_code == 0, result.output
    assert json.loads((study.folder / "report.json").read_text()) == json.loads(result.stdout)
    return json.loads(result.stdout)


def test_rows_are_means_with_intervals_over_seeds(report):
    rows = {(row["row"], row["rate"]): row for row in report["rows"]}
    assert list(rows) == [
        (row, rate) for rate in (0.5, 0.8) for row in ("comp", "tokens", "heads", "no-cip")
    ]
    row = rows["comp", 0.5]
    half = 4.3027 * (0.0013 / 3) ** 0.5  # by hand: see test_study_intervals
    assert row["accuracy"] == pytest.approx(0.83)
    assert row["interval"] == pytest.approx([0.83 - half, 0.83 + half], abs=1e-4)
    assert row["spread"] == "t over seeds"
    assert row["macs"] == 500_000
    assert row["ttft_share"] == 0.25
    assert row["tpot_share"] == 0.5
    assert row["steps"] == [396, 396]
    assert rows["heads", 0.8]["seeds"] == [0, 1]
    assert report["dense_ttft_ms"] == 20.0
    assert {name: rows[name, 0.5]["removes"] for name in ("comp", "tokens", "heads")} == {
        "comp": "both",
        "tokens": "tokens",
        "heads": "parameters",
    }


def test_margins_are_paired_by_seed_and_name_the_best_single_mode(report):
    margins = {(margin["row"], margin["rate"]): margin for margin in report["margins"]}
    best = [key for key, margin in margins.items() if margin["best_single"]]
    # heads has 0.665 of two seeds, tokens 0.62 of three; with its failed seed's 0.99 it were 0.773.
    assert best == [("tokens", 0.5), ("heads", 0.8)]
    heads = margins["heads", 0.8]
    assert heads["n"] == 2
    # 0.70 − 0.66 and 0.72 − 0.67: mean 0.045, s = 0.00707, t of one degree of freedom 12.706.
    half = 12.706 * 0.0070711 / 2**0.5
    assert heads["interval"] == pytest.approx([0.045 - half, 0.045 + half], abs=1e-4)
    assert heads["verdict"] == "no difference shown"
    assert margins["heads", 0.5]["verdict"] == "better"
    assert margins["no-cip", 0.5]["margin"] == pytest.approx(-0.1)
    assert margins["no-cip", 0.5]["verdict"] == "worse"
    assert margins["no-cip", 0.5]["ablation"]
    assert not margins["tokens", 0.5]["ablation"]


def test_the_report_shows_the_results(report, study):
    text = (study.folder / "report.md").read_text()
    assert "| dense | nothing | 0 |  | 90.0 (40.0–60.0) | 0.001 | 8.00 M | 20.00 ms | 1 |" in text
    assert "| comp | both | 0.5 | 3 | 83.0 ± 9.0 | 0.001 | 8.00 M | 5.00 ms | 4.00× |" in text
    assert (
        "| 0.8 | heads | parameters | 72.0 | 66.5 | +4.5 ± 6.4 | 2 | no difference shown |" in text
    )
    single = text[
        text.index("against the best single mode") : text.index("against every other row")
    ]
    assert single.count("\n| 0.") == 2
    ablation = text[text.index("## Ablation of comp") :]
    assert "| 0.5 | no-cip | both | 83.0 | 93.0 | −10.0" in ablation
    assert re.search(r"\n\| comp \| 0\.5 \| 396 \| [^|]+ \| 2\.50× \|", text)  # seeds 0 and 2
    assert "heads-0.8-seed2 | prune | rate 0.8 is out of reach" in text
    for name in ("accuracy-flops.png", "accuracy-ttft.png"):
        assert f"]({name})" in text
        assert (study.folder / name).read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_the_interval_of_its_examples(study):
    result = study(Steps(), "--json", text=HEAD.replace("[0, 1, 2]", "[4]") + ROWS)
    report = json.loads(result.stdout)
    assert report["rows"][0]["interval"] == [0.4, 0.6]
    assert report["rows"][0]["spread"] == "of the examples, one seed"
    assert report["margins"][0]["interval"] is None
    assert report["margins"][0]["verdict"] == "one seed: unknown"
    text = (study.folder / "report.md").read_text()
    assert "| 50.0 (40.0–60.0) |" in text
    assert "does not show how much seeds differ" in text


def test_the_output_of_a_failed_process_is_quoted_and_kept(tmp_path):
    log = tmp_path / "logs" / "cell.log"
    write_text(log, "earlier\n")
    program = "import sys; sys.stderr.write('working\\nError: no such rate\\n\\n'); sys.exit(1)"
    with pytest.raises(StepError, match=r"^no such rate$"):
        run_process([sys.executable, "-c", program], log, 0)
    assert log.read_text() == "earlier\nworking\nError: no such rate\n\n"
    killed = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(StepError, match=r"ended by SIGKILL: not enough memory\?"):
        run_process([sys.executable, "-c", killed], log, 0)
    assert run_process([sys.executable, "-c", "print(3)"], log, 0) == "3\n"


ORPHANED = """
import sys, time
from pathlib import Path
from serve.study.folder import StudyFolder
from serve.study.processes import ended_by_signals, run_process
with StudyFolder(Path(sys.argv[1])).locked() as lock, ended_by_signals():
    sleeping = "import sys, time; sys.stderr.write('up'); sys.stderr.flush(); time.sleep(60)"
    run_process([sys.executable, "-c", sleeping], Path(sys.argv[1]) / "log", lock)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_second_study_is_refused_while_leftover_processes_run(tmp_path, study, ending):
    """Signals that can be caught end the step; after SIGKILL the step holds the folder's lock."""
    folder = tmp_path / "folder"
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANED, str(folder)], stderr=subprocess.PIPE
    )
    log = folder / "log"
    while not (log.is_file() and log.read_text() == "up"):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    assert "is in use: `study` works there since" in str(study(Steps()).error)
    assert not (folder / "cells").exists()
    process.send_signal(ending)
    process.wait(20)
    steps = Steps()
    if ending != signal.SIGKILL:
        assert study(steps).exit_code == 0
        return
    assert "is in use: `study` works there since" in str(study(steps).error)
    (orphan,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _holds(entry, folder / ".lock")
    ]
    os.kill(orphan, signal.SIGKILL)
    while _holds(Path(f"/proc/{orphan}"), folder / ".lock"):
        time.sleep(0.05)
    assert study(steps).exit_code == 0


def _holds(process, file):
    try:
        return any(link.resolve() == file.resolve() for link in (process / "fd").iterdir())
    except OSError:
        return False
