"""Print the table of measured results: ``python -m serve.bench.results_table RUN [RUN ...]``.

Reads the reports of ``prune``, ``onnx``, ``eval`` and ``bench`` in each run and prints Markdown; it
measures nothing itself. ``make results`` writes it to ``docs/results/rates.md``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click

from comp.errors import CompExportError
from comp.runs import RunDirectory, open_run
from export.artifact.load import read_manifest
from serve.artifacts import BOTH, Which, artifact_of

COLUMNS = (
    "model",
    "accuracy (95 % interval)",
    "GMACs",
    "parameters",
    "TTFT ms",
    "TPOT ms",
    "size MiB",
    "TTFT speed-up",
    "FLOPs speed-up",
    "proved",
)


def results_table(runs: list[RunDirectory]) -> str:
    """One row for the dense model, one for each run, and a footnote on the measurement.

    Raises:
        CompExportError: a run lacks a report, or the runs were measured on different machines.
    """
    if not runs:
        raise CompExportError("no runs named: give the run directories to compare")
    reports = sorted(map(_Reports, runs), key=lambda reports: reports.record["rate"])
    first = reports[0]
    machines = {json.dumps([r.bench["machine"], r.bench["versions"]]) for r in reports}
    if len(machines) > 1:
        raise CompExportError(
            "the runs were measured on unlike machines or versions: run `make results` anew"
        )
    lines = [" | ".join(COLUMNS), " | ".join(["---", *["--:"] * (len(COLUMNS) - 1)])]
    lines.append(" | ".join(first.row("dense", "dense")))
    for report in reports:
        name = f"rate {report.record['rate']:.2f}"
        if "vision_parameters" in report.record["modes"]:
            name += ", tower too"
        lines.append(" | ".join(report.row("compressed", name)))
    table = "\n".join(f"| {line} |" for line in lines)
    return f"# Measured results\n\n{table}\n\n{_footnote(reports)}\n"


class _Reports:
    def __init__(self, run: RunDirectory) -> None:
        self.record = run.read_record()
        self.eval = _read(run, "eval")
        self.bench = _read(run, "bench")
        self.params = {which: read_manifest(artifact_of(run, which)).params for which in BOTH}

    def row(self, which: Which, name: str) -> list[str]:
        macs = self.record["macs"]
        accuracy, timing = self.eval[which], self.bench[which]
        low, high = accuracy["ci95"]
        dense = which == "dense"
        return [
            name,
            f"{accuracy['accuracy']:.1%} ({low:.1%}–{high:.1%})",
            f"{macs[which] / 1e9:.3f}",
            f"{self.params[which] / 1e6:.2f} M",
            _with_spread(timing, "ttft_ms"),
            _with_spread(timing, "tpot_ms"),
            f"{timing['size_mb']:.1f}",
            "1" if dense else f"{self.bench['speedup']['ttft']:.2f}×",
            "1" if dense else f"{macs['dense'] / macs['compressed']:.2f}×",
            "yes" if timing["verified"] else "NO",
        ]


def _with_spread(timing: dict[str, Any], measure: str) -> str:
    """Median and 90th percentile."""
    return f"{timing[measure]:.2f} (p90 {timing['spread'][measure]['p90']:.2f})"


def _footnote(reports: list[_Reports]) -> str:
    bench = reports[0].bench
    machine, versions = bench["machine"], bench["versions"]
    facts = ", ".join(f"{key} {value}" for key, value in [*machine.items(), *versions.items()])
    measured = reports[0].eval
    metric = measured.get("metric", "exact match")  # reports of earlier releases name none
    seeds = sorted({report.record["seed"] for report in reports})
    return (
        f"Accuracy ({metric}) on {measured['dense']['n']} examples of the test split, 95 % intervals (of "
        f"counts Wilson's, of means by bootstrap), on the ONNX artifacts; pruning seeds {seeds}. Times: "
        f"median of {bench['workload']['repeats']} "
        f"repeats after {bench['workload']['warmup']} warm-ups, batch 1, "
        f"{bench['workload']['prompt_tokens']} prompt tokens, dense and compressed in turn, "
        f"{bench['threads']} threads, {bench['artifact']['flavour']} {bench['artifact']['precision']}; "
        "the dense row is that of the first run. GMACs are those of a typical prompt "
        f"up to its first token. Measured on: {facts}."
    )


def _read(run: RunDirectory, name: str) -> dict[str, Any]:
    path = run.reports / f"{name}.json"
    if not path.is_file():
        raise CompExportError(f"{run.path} has no {path.name}: run `comp-export {name} {run.path}`")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def main() -> None:
    """Print the table for the runs named on the command line."""
    try:
        click.echo(results_table([open_run(Path(name)) for name in sys.argv[1:]]), nl=False)
    except CompExportError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
