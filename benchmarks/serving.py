r"""Measure servers under load: requests and tokens a second, TTFT and TPOT at given numbers of clients.

It starts ``comp-export serve`` on a run, once with answers together and once one after another, and measures
dense and compressed. Rivals are servers that run already: ``--rival NAME=URL=MODEL``, any that speaks chat
completions. All are measured in turn in every round; the others are idle meanwhile.

    python benchmarks/serving.py runs/latest --out build/serving.json
    python benchmarks/serving.py runs/latest --clients 1,4,16 --loads 0.7 \
      --rival genai=http://127.0.0.1:8101/v1=tiny-llava

All servers get the same pictures and words, greedy, and answers of ``--max-tokens`` tokens: the field that
makes a server go on after the end of the answer is chosen by trial (``asking.LENGTH_FIELDS``). Answers of
other lengths end the measurement, unless ``--unequal-lengths`` allows them. No picture is asked about twice,
in no round, so that caches of images and of prefixes decide nothing, whatever a server has. TTFT ends at the
first chunk with text. ``same_text`` is the share of answers with the text of our dense model. Our server
keeps prefixes by default; ``--serve '--prefix-memory 0'`` switches it off, as it is in the rivals here.

Rivals, each from the checkpoint of the dense model in float32, with two threads:

* **OpenVINO GenAI**: ``benchmarks/rivals/genai_server.py``.
* **transformers**: ``pip install 'transformers[serving]'``, then

      OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1 \
        transformers serve CHECKPOINT --device cpu --dtype float32 --port 8102

  and ``--rival transformers=http://127.0.0.1:8102/v1=CHECKPOINT``, the path as given to it. With
  ``--continuous-batching`` it says that LLaVA has none (texts alone have), and answers one after another too.

A LLaVA of random weights has no run: name its artifacts, and let the server know how long prompts are:

    python benchmarks/llava_speed.py --device cpu --shape llava-s --tower --contestants ort --prepare \
      --work WORK --out build/unused.json
    python benchmarks/serving.py dense=WORK/llava-s-seed0/onnx-dense \
      compressed=WORK/llava-s-seed0/rate-…/onnx --noise 336 --text-tokens 64 \
      --serve '--max-model-len 768 --cache-memory 4'
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from asking import (
    LENGTH_FIELDS,
    Round,
    Target,
    check_lengths,
    choose_length,
    closed_loop,
    open_loop,
    summary,
)
from comp.errors import CompExportError
from comp.utils.console import print_table, say
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions, usable_cores
from our_server import serving, targets_of
from questions import Asked, Questions

TRIED = 2  # answers that show which field makes them equally long


def rival(text: str) -> Target:
    """Parse ``NAME=URL=MODEL``, or ``NAME=URL=MODEL=FIELD`` with a key of ``LENGTH_FIELDS``."""
    words = text.split("=")
    if len(words) not in (3, 4) or not all(words):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as NAME=URL=MODEL")
    if len(words) == 4 and words[3] not in LENGTH_FIELDS:
        raise argparse.ArgumentTypeError(f"{words[3]!r}: choose one of {', '.join(LENGTH_FIELDS)}")
    return Target(words[0], words[1].rstrip("/"), *words[2:])


def also(text: str) -> tuple[str, list[str]]:
    """Parse ``NAME=OPTIONS`` of another server of ours."""
    name, equals, options = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as NAME=OPTIONS")
    return name, shlex.split(options)


def numbers(text: str) -> list[float]:
    """Parse numbers above 0, by comma."""
    values = [float(each) for each in text.split(",") if each]
    if not all(each > 0 for each in values):
        raise argparse.ArgumentTypeError(f"{text}: choose numbers above 0")
    return values


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = options.add_argument
    add("places", nargs="+", help="a run; or dense=ARTIFACT compressed=ARTIFACT")
    add("--out", type=Path, default=Path("build/serving.json"))
    add("--clients", default="1,4,16", help="closed loop, by comma")
    add("--requests", type=int, default=32, help="of one round and target")
    add("--rounds", type=int, default=3)
    add("--max-tokens", type=int, default=32, help="of every answer")
    add("--loads", type=numbers, default=[], help="open loop: shares of the most requests a second")
    add("--rows", type=int, default=16, help="answers that run together")
    add("--threads", type=int, default=usable_cores())
    add("--serve", type=shlex.split, default=[], help="more options of comp-export serve")
    add(
        "--also",
        type=also,
        action="append",
        default=[],
        help="another server of ours: NAME=OPTIONS",
    )
    add(
        "--rival",
        type=rival,
        action="append",
        default=[],
        help="NAME=URL=MODEL, which runs already",
    )
    add("--noise", type=int, metavar="SIDE", help="pictures of noise and random words, not scenes")
    add("--text-tokens", type=int, default=64, help="of prompts, with --noise")
    add(
        "--unequal-lengths",
        action="store_true",
        help="compare answers of unequal lengths, and say so",
    )
    add("--seed", type=int, default=0, help="of arrivals")
    return options


class Measurement:
    """All targets, asked in turn; every block of questions is new to every target."""

    def __init__(self, args: argparse.Namespace, targets: Sequence[Target]) -> None:
        self._args = args
        self._questions = Questions(args.requests, args.noise, args.text_tokens)
        self._blocks = count(1)  # block 0 warms up
        self.texts: dict[str, list[str]] = {}  # of the first round
        self.targets = self._warm_up(targets)

    def _warm_up(self, targets: Sequence[Target]) -> list[Target]:
        """Let every target answer once from all clients; choose the fields that make lengths equal."""
        args, questions = self._args, self._questions.block(0)
        most = min(len(questions), max(self.clients))
        chosen = []
        for target in targets:
            say(f"warming up: {target.name}")
            if not args.unequal_lengths:
                target = choose_length(target, questions[:TRIED], args.max_tokens)
            elif not target.length:
                target = Target(target.name, target.url, target.model, "none")
            asyncio.run(closed_loop(target, questions[:most], args.max_tokens, most))
            chosen.append(target)
        return chosen

    @property
    def clients(self) -> list[int]:
        """Numbers of clients of closed loops."""
        return [int(each) for each in numbers(self._args.clients)]

    def closed(self, clients: int) -> dict[str, dict[str, Any]]:
        """Measure ``clients`` that each ask one question after another."""
        return self._rounds(
            f"{clients} client{'s' * (clients > 1)}",
            lambda target, questions, _: closed_loop(
                target, questions, self._args.max_tokens, clients
            ),
        )

    def open_at(self, load: float, most: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Measure at Poisson arrivals of a share of the ``most`` requests a second of each target."""
        rates = {name: load * each for name, each in most.items()}
        results = self._rounds(
            f"load {load:g}",
            lambda target, questions, seed: open_loop(
                target, questions, self._args.max_tokens, rates[target.name], seed
            ),
        )
        return {name: {"rate": round(rates[name], 3), **each} for name, each in results.items()}

    def _rounds(self, what: str, ask: Any) -> dict[str, dict[str, Any]]:
        rounds: dict[str, list[Round]] = {target.name: [] for target in self.targets}
        for number in range(self._args.rounds):
            questions: Sequence[Asked] = self._questions.block(next(self._blocks))
            for target in self.targets:
                say(f"{what}, round {number + 1}: {target.name}")
                answers, seconds = asyncio.run(ask(target, questions, self._args.seed + number))
                if not self._args.unequal_lengths:
                    check_lengths(target, answers, self._args.max_tokens)
                self.texts.setdefault(target.name, [each.text for each in answers])
                rounds[target.name].append((answers, seconds))
        return {name: summary(each) for name, each in rounds.items()}

    def same_text(self) -> dict[str, float]:
        """Share of a target's first answers with the text of the first target."""
        reference = self.texts[self.targets[0].name]
        return {
            name: round(sum(map(str.__eq__, texts, reference)) / len(reference), 4)
            for name, texts in self.texts.items()
        }


def version_of(target: Target) -> Any:
    """``GET /version`` of a server, or ``None`` where there is none."""
    try:
        response = httpx.get(target.url.removesuffix("/v1") + "/version")
        return response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None


def most_requests(closed: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The most requests a second of each target, over all numbers of clients."""
    names = next(iter(closed.values()))
    return {
        name: max(each[name]["requests_per_second"] for each in closed.values()) for name in names
    }


def ratios(report: Mapping[str, Any], rivals: Sequence[str]) -> dict[str, Any]:
    """The figures by which a server is judged: tokens a second beside others', p99 TTFT beside unloaded."""
    most = list(report["closed"].values())[-1]
    speed = {name: each["tokens_per_second"] for name, each in most.items()}
    dense, compressed = speed["together, dense"], speed["together, compressed"]
    found: dict[str, Any] = {
        "together_to_one_by_one": {
            kind: round(speed[f"together, {kind}"] / speed[f"one by one, {kind}"], 3)
            for kind in ("dense", "compressed")
        }
    }
    if rivals:
        best = max(rivals, key=lambda name: speed[name])
        found["best_rival"] = best
        found["dense_to_best_rival"] = round(dense / speed[best], 3)
        found["compressed_to_best_rival"] = round(compressed / speed[best], 3)
    if unloaded := report["closed"].get("1"):
        found["ttft_p99_to_unloaded"] = {
            load: {
                name: round(each["ttft_ms"]["p99"] / unloaded[name]["ttft_ms"]["p99"], 3)
                for name, each in by_name.items()
            }
            for load, by_name in report["open"].items()
        }
    return found


def rows_of(kind: str, results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of the table."""
    rows = []
    for which, by_name in results.items():
        for name, each in by_name.items():
            by_round = each["tokens_per_second_by_round"]
            rows.append(
                [
                    f"{which} {kind}",
                    name,
                    f"{each['tokens_per_second']:.1f}",
                    f"{min(by_round):.1f} to {max(by_round):.1f}",
                    f"{each['ttft_ms']['p50']:.1f} ms",
                    f"{each['ttft_ms']['p99']:.1f} ms",
                    f"{each['tpot_ms'].get('p50', 0):.2f} ms",
                ]
            )
    return rows


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all targets, and return the report.

    Raises:
        CompExportError: a server did not start, refused a request, or answers have unequal lengths.
    """
    report: dict[str, Any] = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "pictures": "no picture is asked about twice: caches of images and prefixes have no effect",
        "closed": {},
        "open": {},
    }
    with ExitStack() as stack:

        def ours(name: str, rows: int, more: Sequence[str]) -> list[Target]:
            places = args.places if len(args.places) > 1 else Path(args.places[0])
            server = stack.enter_context(serving(places, rows, args.threads, *args.serve, *more))
            return targets_of(name, server.url)

        targets = [*ours("together", args.rows, []), *ours("one by one", 1, [])]
        for name, more in args.also:
            targets += ours(name, args.rows, more)
        measurement = Measurement(args, [*targets, *args.rival])
        report["targets"] = {
            each.name: {**asdict(each), "version": version_of(each)} for each in measurement.targets
        }
        for clients in measurement.clients:
            report["closed"][str(clients)] = measurement.closed(clients)
        for load in args.loads:
            most = most_requests(report["closed"])
            report["open"][f"{load:g}"] = measurement.open_at(load, most)
    report["same_text"] = measurement.same_text()
    report["ratios"] = ratios(report, [each.name for each in args.rival])
    return report


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
        "Servers under load",
        ["arrivals", "server", "tokens/s", "by round", "TTFT p50", "p99", "TPOT p50"],
        [*rows_of("at once", report["closed"]), *rows_of("of the most", report["open"])],
        numbers_from=2,
    )
    say(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
