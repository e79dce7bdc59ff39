"""Measure what the factor on keep ratios does under load: accuracy, TTFT and latency.

    python benchmarks/keep_factor.py runs/latest --keep-factors 0.5,1,1.5,auto --loads 0.3,0.8,1.2 --out FILE

It starts ``comp-export serve --keep-factor`` on a run once for each factor and asks the compressed model
questions of EmojiScenes' test part, whose answers end where the model ends them. Arrivals are Poisson. A load
is a share of the requests a second that factor 1 answers when as many clients as it has rows never pause.
Above 1 the queue grows as long as requests come: latencies there depend on ``--requests``.

All factors get the same questions at the same moments, in turn in every round; no picture is asked about
twice. Accuracy is the exact match of ``comp-export eval``, over all rounds, with Wilson's 95 % interval.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from asking import Measured, Round, Target, closed_loop, open_loop, percentiles
from comp.errors import CompExportError
from comp.metrics.exact_match import exact_match, wilson_interval
from comp.utils.console import print_table, say
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions, usable_cores
from our_server import serving, targets_of
from questions import Asked, Questions
from serve.scheduling.adaptive import factor_named
from serving import numbers

REFERENCE = "1"  # the factor whose throughput the loads are shares of


def factors(text: str) -> list[str]:
    """Parse factors by comma; ``auto`` is one."""
    names = [each.strip() for each in text.split(",") if each.strip()]
    try:
        for name in names:
            factor_named(name)
    except CompExportError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if REFERENCE not in names:
        raise argparse.ArgumentTypeError(f"{text}: {REFERENCE} must be among them, loads are its")
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = options.add_argument
    add("run", type=Path)
    add("--keep-factors", type=factors, default=["0.5", "1", "1.5", "auto"])
    add("--loads", type=numbers, default=[0.3, 0.8, 1.2])
    add("--requests", type=int, default=128, help="of one round, factor and load")
    add("--rounds", type=int, default=3)
    add("--max-tokens", type=int, default=32, help="of an answer, at most")
    add("--rows", type=int, default=16, help="answers that run together")
    add("--threads", type=int, default=usable_cores())
    add("--serve", type=shlex.split, default=[], help="more options of comp-export serve")
    add("--seed", type=int, default=0, help="of arrivals")
    add("--out", type=Path, default=Path("build/keep-factor.json"))
    return options


def scored(questions: Sequence[Asked], answers: Sequence[Measured]) -> list[bool]:
    """Whether each answer is right."""
    return [
        exact_match(asked.answer or "", answer.text)
        for asked, answer in zip(questions, answers, strict=True)
    ]


def report_of(rounds: Sequence[tuple[Sequence[Asked], Round]]) -> dict[str, Any]:
    """Accuracy and times of one factor at one load, over all rounds."""
    right = [hit for questions, (answers, _) in rounds for hit in scored(questions, answers)]
    every = [each for _, (answers, _) in rounds for each in answers]
    used = [each.extension["keep_factor"] for each in every]
    kept = [each.extension["image_tokens_kept"][-1]["kept"] for each in every]
    return {
        "requests": len(every),
        "right": sum(right),
        "accuracy": round(sum(right) / len(right), 4),
        "ci95": [round(bound, 4) for bound in wilson_interval(sum(right), len(right))],
        "accuracy_by_round": [
            round(float(np.mean(scored(questions, answers))), 4)
            for questions, (answers, _) in rounds
        ],
        "requests_per_second_by_round": [
            round(len(answers) / seconds, 3) for _, (answers, seconds) in rounds
        ],
        "ttft_ms": percentiles([each.first for each in every]),
        "ttft_ms_p50_by_round": [
            percentiles([each.first for each in answers])["p50"] for _, (answers, _) in rounds
        ],
        "whole_ms": percentiles([each.whole for each in every]),
        "whole_ms_p50_by_round": [
            percentiles([each.whole for each in answers])["p50"] for _, (answers, _) in rounds
        ],
        "factor": {
            "mean": round(float(np.mean(used)), 4),
            "least": min(used),
            "most": max(used),
        },
        "image_tokens_kept_at_the_end": round(float(np.mean(kept)), 2),
    }


def capacity_of(target: Target, questions: Sequence[Asked], args: argparse.Namespace) -> float:
    """Requests a second when as many clients as rows ask one question after another."""
    answers, seconds = asyncio.run(closed_loop(target, questions, args.max_tokens, args.rows))
    return len(answers) / seconds


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all factors at all loads, and return the report.

    Raises:
        CompExportError: a server did not start, or refused a request.
    """
    report: dict[str, Any] = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "pictures": "no picture is asked about twice: caches of images and prefixes have no effect",
        "loads": {},
    }
    source, blocks = Questions(args.requests), count()
    with ExitStack() as stack:
        targets = {}
        for name in args.keep_factors:
            options = (*args.serve, "--keep-factor", name)
            server = stack.enter_context(serving(args.run, args.rows, args.threads, *options))
            targets[name] = targets_of(name, server.url)[1]
        warm_up = source.block(next(blocks))
        for name, target in targets.items():
            say(f"warming up: {name}")
            capacity_of(target, warm_up[: args.rows], args)
        by_round = []
        for number in range(args.rounds):
            say(f"requests a second of factor {REFERENCE}, round {number + 1}")
            by_round.append(capacity_of(targets[REFERENCE], source.block(next(blocks)), args))
        capacity = float(np.median(by_round))
        report["capacity"] = {
            "requests_per_second": round(capacity, 3),
            "by_round": [round(each, 3) for each in by_round],
        }
        for load in args.loads:
            rounds: dict[str, list[Any]] = {name: [] for name in targets}
            for number in range(args.rounds):
                questions = source.block(next(blocks))
                for name, target in targets.items():
                    say(f"load {load:g}, round {number + 1}: factor {name}")
                    asked = open_loop(
                        target, questions, args.max_tokens, load * capacity, args.seed + number
                    )
                    rounds[name].append((questions, asyncio.run(asked)))
            report["loads"][f"{load:g}"] = {
                "rate": round(load * capacity, 3),
                "factors": {name: report_of(each) for name, each in rounds.items()},
            }
    return report


def rows_of(report: dict[str, Any]) -> list[list[str]]:
    """Rows of the table."""
    return [
        [
            load,
            name,
            f"{100 * each['accuracy']:.1f} %",
            " to ".join(f"{100 * bound:.1f}" for bound in each["ci95"]),
            f"{each['factor']['mean']:.2f}",
            *(
                f"{each[what][p]:.1f} ms"
                for what in ("ttft_ms", "whole_ms")
                for p in ("p50", "p99")
            ),
        ]
        for load, at in report["loads"].items()
        for name, each in at["factors"].items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the report, print a table."""
    args = parser().parse_args(arguments)
    try:
        report = run(args)
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    write_text(args.out, json.dumps(report, indent=1) + "\n")
    print_table(
        f"Factors on keep ratios; load 1 is {report['capacity']['requests_per_second']} requests a second",
        ["load", "factor", "accuracy", "95 %", "used", "TTFT p50", "p99", "whole p50", "p99"],
        rows_of(report),
        numbers_from=2,
    )
    say(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
