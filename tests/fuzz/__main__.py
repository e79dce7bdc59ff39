"""Hostile inputs, counted: ``python -m tests.fuzz --out benchmarks/results/fuzz.json``."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from random import Random
from time import monotonic

from comp.utils.machine import usable_cores
from tests.fuzz.base import make_base
from tests.fuzz.kinds import KINDS
from tests.fuzz.outcomes import Outcome, counted, table
from tests.fuzz.pool import Limits, tried
from tests.fuzz.trial import try_one


def jobs_of(seed: int, share: float = 1.0, only: list[str] | None = None) -> list[tuple[str, int]]:
    """Kinds and seeds of a run, mixed."""
    jobs = [
        (kind, seed * 1_000_000 + number)
        for kind, (_, count) in KINDS.items()
        if not only or kind in only
        for number in range(max(1, round(count * share)))
    ]
    Random(seed).shuffle(jobs)
    return jobs


def run(
    jobs: list[tuple[str, int]], folder: Path, workers: int, limits: Limits, say: bool = False
) -> list[Outcome]:
    """Try all jobs; ``folder`` gets the base and the workers' scratch."""
    base = folder / "base"
    make_base(base)
    outcomes = []
    for outcome in tried(try_one, jobs, base, folder / "scratch", workers, limits):
        outcomes.append(outcome)
        if say and outcome.verdict == "other":
            print(f"--- {outcome.kind}, seed {outcome.seed}\n{outcome.detail}", flush=True)
    return outcomes


def main() -> int:
    """Run, print the table, write the counts; return 1 on any other outcome than is promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--share", type=float, default=1.0, help="of the usual number of inputs")
    add("--only", action="append", choices=list(KINDS), help="this kind alone")
    add("--again", type=int, action="append", help="this input alone, by its seed; with --only")
    add("--workers", type=int, default=usable_cores())
    add("--out", type=Path, help="JSON to write")
    add("--all", type=Path, help="write every outcome here, a line each")
    chosen = parser.parse_args()
    start = monotonic()
    jobs = jobs_of(chosen.seed, chosen.share, chosen.only)
    if chosen.again is not None:
        jobs = [(kind, seed) for kind in chosen.only or KINDS for seed in chosen.again]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        outcomes = run(jobs, Path(folder), chosen.workers, Limits(), say=True)
    counts = counted(sorted(outcomes, key=lambda each: list(KINDS).index(each.kind)))
    print(table(counts), f"{monotonic() - start:.0f} s", sep="\n")
    if chosen.all:
        lines = (json.dumps(vars(each)) for each in outcomes)
        chosen.all.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if chosen.out:
        result = {"seed": chosen.seed, "inputs": len(outcomes), "counts": counts}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(each.verdict == "other" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
