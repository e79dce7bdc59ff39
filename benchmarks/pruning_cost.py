"""Measure the cost of pruning relative to plain fine-tuning for the same steps on the same data.

Plain fine-tuning is measured before and after every variant of pruning, because machines have slow hours.
Loading the model and exporting are not included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from comp.adapter import FamilyAdapter, Forwarding
from comp.checkpoints.locate import resolve_model
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.importance.parameters import ParameterImportance
from comp.masks import Masks
from comp.training.data import DataSizes, PruningData, embedded_data
from comp.training.trainer import StepOptions, Trainer, examples_of, prefetched
from comp.utils.compute import Compute
from comp.utils.console import print_table, say
from comp.utils.files import write_text
from comp.utils.machine import describe_machine
from speed_report import describe_versions

VARIANTS = {
    "comp": (),
    "costs by the metric": ("--cost-metric", "accuracy"),
    "no distillation": ("--distill", "none"),
    "no refitting": ("--no-reconstruction",),
    "the paper's recipe": ("--faithful",),
}


def plain_steps(
    adapter: FamilyAdapter, compute: Compute, data: PruningData, args: argparse.Namespace
) -> list[float]:
    """Seconds of each training step of the dense model, including the wait for its batch."""
    options = StepOptions(batch_size=args.batch_size)
    trainer = Trainer(adapter, compute, options, args.warmup + args.steps)

    def make(step: int) -> Any:
        return adapter.collate(examples_of(data.train, step, args.batch_size, args.seed))

    seconds = []
    began = time.perf_counter()
    for step, batch in enumerate(prefetched(compute, make, range(trainer.total))):
        trainer.step(batch, Forwarding(), step)
        ended = time.perf_counter()
        seconds.append(ended - began)
        began = ended
    return seconds[args.warmup :]


def statistics_cost(
    adapter: FamilyAdapter, compute: Compute, data: PruningData, repeats: int
) -> dict[str, Any]:
    """Time a forward pass with and without importance statistics, in turn; median ms per batch."""
    forwarding = Forwarding(Masks.ones(adapter.blocks))
    parts = {block.part for block in adapter.blocks}
    batch = data.calibration[0]
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    with torch.no_grad(), compute.autocast():
        for turn in range(repeats + 1):
            for name, kept in seconds.items():
                observer = ParameterImportance(parts, token_weighted=True, has_cls=adapter.has_cls)
                began = time.perf_counter()
                adapter.score(batch, forwarding, *([observer] if name == "with" else []))
                if turn:
                    kept.append(time.perf_counter() - began)
    return {f"pass_{name}_ms": 1000 * median(kept) for name, kept in seconds.items()}


def pruned(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prune with a variant and return its ``run.json``."""
    out = folder / name.replace(" ", "-")
    words = [sys.executable, "-m", "comp.cli", "prune", "--model", args.model, "--json"]
    words += ["--rate", str(args.rate), "--out", str(out), "--seed", str(args.seed)]
    words += ["--batch-size", str(args.batch_size), "--device", "cpu"]
    words += [*args.prune.split(), *VARIANTS[name]]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise CompExportError(f"{name}: {done.stderr.strip()[-600:]}")
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def row_of(record: dict[str, Any], plain: Sequence[float]) -> dict[str, Any]:
    """Compare a variant with plain fine-tuning for the same steps; ``plain`` are its seconds per step."""
    seconds = record["seconds"]
    training = seconds["training"] + seconds["data"]
    wall = record["times_fine_tuning"]["whole"] * training
    steps = sum(record["steps"].values())
    tuning = steps * median(plain)
    parts = ("training", "data", "distillation", "importance", "cost", "reconstruction")
    return {
        "seconds": wall,
        "steps": steps,
        "fine_tuning_seconds": tuning,
        "times_fine_tuning": wall / tuning,
        "range": [wall / (steps * max(plain)), wall / (steps * min(plain))],
        "parts": {name: seconds[name] / tuning for name in parts if name in seconds},
        "metric": record["metric"],
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure plain fine-tuning and variants in turn."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    compute = Compute("cpu")
    adapter = load_adapter(resolve_model(args.model), compute.device)
    adapter.train_parts({mode.part for mode in adapter.modes if mode.part} | {"language"})
    data = embedded_data(adapter, compute, DataSizes(validation=64))
    report: dict[str, Any] = {
        "model": args.model,
        "rate": args.rate,
        "prune": args.prune,
        "threads": args.threads,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "statistics": statistics_cost(adapter, compute, data, args.steps),
    }
    rounds, records = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.variants:
            say("plain fine-tuning")
            rounds.append(median(plain_steps(adapter, compute, data, args)))
            say(f"pruning: {name}")
            records[name] = pruned(name, args, Path(folder))
        rounds.append(median(plain_steps(adapter, compute, data, args)))
    report["fine_tuning_step_ms"] = [1000 * each for each in rounds]
    report["rows"] = {name: row_of(record, rounds) for name, record in records.items()}
    return report


def columns_of(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    low, high = row["range"]
    parts = ", ".join(f"{name} {share:.2f}" for name, share in row["parts"].items())
    return (
        f"{row['seconds']:.0f} s",
        f"{row['times_fine_tuning']:.2f} ({low:.2f}–{high:.2f})",
        parts,
        f"{row['metric']['compressed']:.1%}",
    )


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description="Time of pruning relative to plain fine-tuning of the dense model for the same steps."
    )
    add = options.add_argument
    add("--model", default="tiny-llava")
    add("--rate", type=float, default=0.8)
    add("--prune", default="--modes vt,lt,lp,vp", help="further options of prune, as one word")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--out", type=Path, required=True, help="JSON file to write")
    add("--threads", type=int, default=2)
    add("--warmup", type=int, default=3, help="untimed training steps")
    add("--steps", type=int, default=12, help="timed training steps per round")
    add("--batch-size", type=int, default=32)
    add("--seed", type=int, default=0)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if everything was measured."""
    args = parser().parse_args(arguments)
    try:
        report = run(args)
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    rows = [(name, *columns_of(row)) for name, row in report["rows"].items()]
    title = f"{args.model} at {args.rate:g}: pruning time relative to plain fine-tuning for the same steps"
    head = ("variant", "time", "times fine-tuning", "its parts, in the same unit", "validation")
    print_table(title, head, rows)
    write_text(args.out, json.dumps(report, indent=1) + "\n")
    say(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
