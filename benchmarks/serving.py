"""Measure servers under load: requests and tokens a second, TTFT and TPOT at given numbers of clients.

It starts ``comp-export serve`` on a run, once with answers together and once one after another, and measures
dense and compressed. Rivals are servers that run already: ``--rival NAME=URL=MODEL``, any that speaks chat
completions. All are measured in turn in every round; the others are idle meanwhile.

    python benchmarks/serving.py runs/latest --out build/serving.json
    python benchmarks/serving.py runs/latest --clients 1,4,16 --load 0.7 --rival ovms=http://127.0.0.1:9000/v3=tiny
"""

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from comp.data.embedded import embedded_examples
from comp.utils.console import print_table, say
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions, usable_cores

START_SECONDS = 120.0
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Target:
    """A model of a server."""

    name: str
    url: str  # with /v1
    model: str


@dataclass(frozen=True)
class Started:
    """A server of ours in a process."""

    url: str  # with /v1
    pid: int


@dataclass(frozen=True)
class Measured:
    """One request: seconds to the first token, to the end, and the tokens of its answer."""

    first: float
    whole: float
    tokens: int

    @property
    def each(self) -> float:
        """Seconds per token after the first."""
        return (self.whole - self.first) / max(1, self.tokens - 1)


def content_of(picture: Image.Image, text: str) -> list[dict[str, Any]]:
    """The parts of a message: a picture as PNG, and words."""
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]


def requests_of(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Bodies of requests about test pictures, one question each."""
    bodies = []
    examples = embedded_examples("question", "test", count)
    for number in range(count):
        example = examples[number]
        content = content_of(example.image, example.question)
        bodies.append(
            {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,  # of vLLM's and llama.cpp's servers, too: answers of one length
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
    return bodies


async def ask(client: httpx.AsyncClient, target: Target, body: dict[str, Any]) -> Measured:
    """Send one request and read its stream."""
    began = time.perf_counter()
    first, tokens = 0.0, 0
    request = body | {"model": target.model}
    async with client.stream("POST", f"{target.url}/chat/completions", json=request) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and any(each["delta"].get("content") for each in chunk["choices"]):
                first = time.perf_counter() - began
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    whole = time.perf_counter() - began
    return Measured(first or whole, whole, tokens)


async def closed_loop(
    target: Target, bodies: Sequence[dict[str, Any]], clients: int
) -> tuple[list[Measured], float]:
    """Let clients ask one request after another; return the requests and the seconds of all."""
    left = iter(bodies)
    done: list[Measured] = []

    async def work(client: httpx.AsyncClient) -> None:
        for body in left:
            done.append(await ask(client, target, body))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return done, time.perf_counter() - began


async def open_loop(
    target: Target, bodies: Sequence[dict[str, Any]], rate: float, seed: int
) -> tuple[list[Measured], float]:
    """Send requests at Poisson arrivals of ``rate`` a second, whether or not answers have come."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(bodies))
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        began = time.perf_counter()
        tasks = []
        for body, due in zip(bodies, np.cumsum(gaps), strict=True):
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(client, target, body)))
        done = await asyncio.gather(*tasks)
        return list(done), time.perf_counter() - began


def summary(rounds: Sequence[tuple[list[Measured], float]]) -> dict[str, Any]:
    """Throughput by round with its median, and percentiles of times over all requests, in milliseconds."""
    requests = [len(done) / seconds for done, seconds in rounds]
    tokens = [sum(each.tokens for each in done) / seconds for done, seconds in rounds]
    every = [each for done, _ in rounds for each in done]

    def percentiles(values: Sequence[float]) -> dict[str, float]:
        if not values:
            return {}
        return {f"p{p}": round(1000 * float(np.percentile(values, p)), 2) for p in PERCENTILES}

    return {
        "requests": len(every),
        "requests_per_second": round(float(np.median(requests)), 3),
        "tokens_per_second": round(float(np.median(tokens)), 2),
        "tokens_per_second_by_round": [round(each, 2) for each in tokens],
        "ttft_ms": percentiles([each.first for each in every]),
        "tpot_ms": percentiles([each.each for each in every if each.tokens > 1]),
    }


@contextmanager
def serving(run: Path, rows: int, threads: int, *options: str) -> Iterator["Started"]:
    """Run ``comp-export serve`` in a process until the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "comp.cli", "serve", str(run), "--port", str(port)]
    command += ["--max-num-seqs", str(rows), "--threads", str(threads), "--max-queue", "4096"]
    command += options
    process = subprocess.Popen(command, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)} did not start")
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield Started(f"http://127.0.0.1:{port}/v1", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def targets_of(name: str, url: str) -> list[Target]:
    """The models of a server: dense first."""
    ids = [each["id"] for each in httpx.get(f"{url}/models").json()["data"]]
    return [
        Target(f"{name}, {kind}", url, model)
        for kind, model in zip(("dense", "compressed"), ids, strict=True)
    ]


def rival(text: str) -> Target:
    """Parse ``NAME=URL=MODEL``."""
    name, url, model = text.split("=")
    return Target(name, url, model)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/serving.json"))
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=32, help="of one round and target")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--load", type=float, help="open loop: share of the most requests a second")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rival", type=rival, action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure all targets, and write the report."""
    args = parse()
    bodies = requests_of(args.requests, args.max_tokens)
    report: dict[str, Any] = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "closed": {},
        "open": {},
    }
    with (
        serving(args.run, args.rows, args.threads) as together,
        serving(args.run, 1, args.threads) as alone,
    ):
        targets = [
            *targets_of("together", together.url),
            *targets_of("one by one", alone.url),
            *args.rival,
        ]
        for target in targets:  # warm up
            asyncio.run(closed_loop(target, bodies[:4], 2))
        for clients in (int(each) for each in args.clients.split(",")):
            rounds: dict[str, list[tuple[list[Measured], float]]] = {t.name: [] for t in targets}
            for number in range(args.rounds):
                for target in targets:
                    say(f"{clients} clients, round {number + 1}: {target.name}")
                    rounds[target.name].append(asyncio.run(closed_loop(target, bodies, clients)))
            report["closed"][str(clients)] = {name: summary(each) for name, each in rounds.items()}
        if args.load:
            most = report["closed"][args.clients.split(",")[-1]]
            for target in targets:
                rate = args.load * most[target.name]["requests_per_second"]
                each = [
                    asyncio.run(open_loop(target, bodies, rate, args.seed + number))
                    for number in range(args.rounds)
                ]
                report["open"][target.name] = {"requests_per_second": rate, **summary(each)}
    write_text(args.out, json.dumps(report, indent=1) + "\n")
    print_table(
        "Servers under load",
        ["clients", "server", "tokens/s", "TTFT p50", "p99", "TPOT p50"],
        [
            [
                clients,
                name,
                f"{each['tokens_per_second']:.1f}",
                f"{each['ttft_ms']['p50']:.1f} ms",
                f"{each['ttft_ms']['p99']:.1f} ms",
                f"{each['tpot_ms'].get('p50', 0):.2f} ms",
            ]
            for clients, by_name in report["closed"].items()
            for name, each in by_name.items()
        ],
        numbers_from=2,
    )


if __name__ == "__main__":
    main()
