"""The table of results, from real reports."""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.runs import open_run
from serve.bench.results_table import COLUMNS, results_table

RECORD = {
    "rate": 0.4,
    "seed": 3,
    "macs": {"dense": 1_000_000, "compressed": 600_000},
    "modes": ["language_tokens", "vision_parameters"],
}


@pytest.fixture
def measured(run):
    """A run with the reports of ``eval`` and ``bench``."""
    record = run / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | RECORD))
    one_thread = ("--threads", "1")
    bench = ("--repeats", "2", "--warmup", "1", "--new-tokens", "3", "--cold-starts", "1")
    for words in (("eval", str(run), "--limit", "6"), ("bench", str(run), *bench)):
        done = CliRunner().invoke(cli, [*words, *one_thread], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return run


def test_the_table_has_the_dense_model_and_one_row_per_run(measured):
    table = results_table([open_run(measured)])
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert tuple(rows[0]) == COLUMNS
    assert [row[0] for row in rows[2:]] == ["dense", "rate 0.40, tower too"]
    reports = measured / "reports"
    score = json.loads((reports / "eval.json").read_text())["compressed"]
    timing = json.loads((reports / "bench.json").read_text())["compressed"]
    assert rows[3][1].startswith(f"{score['accuracy']:.1%} (")
    assert rows[3][4].startswith(f"{timing['ttft_ms']:.2f} (p90 ")
    assert rows[3][8:] == ["1.67×", "NO"]
    assert "Accuracy (exact match; " in table
    assert ") on 6 examples" in table
    report = json.loads((reports / "eval.json").read_text())
    (reports / "eval.json").write_text(json.dumps({**report, "metric": "VQA accuracy"}))
    assert "(VQA accuracy) on 6 examples" in results_table([open_run(measured)])
    assert "seeds [3]" in table
    assert "1 threads" in table


def test_runs_of_different_machines_are_refused_in_one_table(measured, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("run.json", "onnx", "onnx-dense"):
        (other / name).symlink_to(measured / name)
    (other / "reports").mkdir()
    (other / "reports" / "eval.json").symlink_to(measured / "reports" / "eval.json")
    report = json.loads((measured / "reports" / "bench.json").read_text())
    report["machine"]["cpu"] = "another"
    (other / "reports" / "bench.json").write_text(json.dumps(report))
    with pytest.raises(CompExportError, match="unlike machines"):
        results_table([open_run(measured), open_run(other)])


def test_a_missing_report_names_the_command(run):
    with pytest.raises(CompExportError, match="comp-export eval"):
        results_table([open_run(run)])
