"""Ask a server from many clients for minutes; count failures, and follow the memory of its process.

    python benchmarks/soak.py runs/latest --clients 16 --minutes 5 --out build/soak.json

Half of the requests go to the dense model, half to the compressed one; a tenth of the clients leave in
the middle of their answer. Every picture is new, so that no cache knows it. The memory of caches is small, so
that they are full after the first fifth of the time.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from asking import Target
from comp.utils.console import say
from comp.utils.files import write_text
from comp.utils.machine import describe_machine, describe_versions, usable_cores
from our_server import serving, targets_of
from questions import content_of

LEAVES = 0.1  # share of the requests whose client leaves
SIDE = 96  # pixels of a picture
SMALL_CACHES = ("--image-memory", "0.02", "--prefix-memory", "0.1")  # GiB


async def client_loop(
    targets: list[Target], number: int, until: float, counts: Counter[str]
) -> None:
    """Ask one request after another."""
    draws = np.random.default_rng(number)
    async with httpx.AsyncClient(timeout=300) as client:
        while time.monotonic() < until:
            target = targets[int(draws.integers(len(targets)))]
            leaves = draws.random() < LEAVES
            try:
                counts[await ask(client, target, draws, leaves)] += 1
            except httpx.HTTPError as error:
                counts[f"failed: {type(error).__name__}"] += 1


async def ask(
    client: httpx.AsyncClient, target: Target, draws: np.random.Generator, leaves: bool
) -> str:
    """Send one request; return how it ended."""
    picture = Image.fromarray(draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": content_of(picture, "what is on the left?")}],
        "max_tokens": int(draws.integers(1, 33)),
        "ignore_eos": True,
        "stream": True,
    }
    async with client.stream("POST", f"{target.url}/chat/completions", json=body) as response:
        if response.status_code != 200:
            return f"failed: status {response.status_code}"
        last = ""
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                last = line[6:]
                if leaves:
                    return "left"
                if "error" in last[:12]:
                    return "failed: error event"
    return "answered" if last == "[DONE]" else "failed: cut off"


async def soak(
    targets: list[Target], process: psutil.Process, clients: int, seconds: float
) -> tuple[Counter[str], list[list[float]]]:
    """Run all clients; return how requests ended, and seconds with MiB of the process once a second."""
    counts: Counter[str] = Counter()
    memory: list[list[float]] = []
    began = time.monotonic()

    async def watch() -> None:
        while True:
            memory.append(
                [round(time.monotonic() - began, 1), round(process.memory_info().rss / 2**20, 1)]
            )
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    until = began + seconds
    await asyncio.gather(*(client_loop(targets, each, until, counts) for each in range(clients)))
    watching.cancel()
    return counts, memory


def growth(memory: list[list[float]]) -> dict[str, float]:
    """Median MiB of the second and of the last fifth of the time, and their difference."""
    values = [mib for _, mib in memory]
    fifth = max(1, len(values) // 5)
    early, late = (float(np.median(each)) for each in (values[fifth : 2 * fifth], values[-fifth:]))
    return {"early_mib": early, "late_mib": late, "growth_mib": round(late - early, 1)}


def main() -> None:
    """Run the soak, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", type=Path)
    add("--out", type=Path, default=Path("build/soak.json"))
    add("--clients", type=int, default=16)
    add("--minutes", type=float, default=5.0)
    add("--rows", type=int, default=16)
    add("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    with serving(args.run, args.rows, args.threads, *SMALL_CACHES) as started:
        process = psutil.Process(started.pid)
        targets = targets_of("soak", started.url)
        counts, memory = asyncio.run(soak(targets, process, args.clients, args.minutes * 60))
        metrics = httpx.get(started.url.removesuffix("/v1") + "/metrics").text
        asyncio.run(asyncio.sleep(1))
    failed = sum(number for end, number in counts.items() if end.startswith("failed"))
    report = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "machine": describe_machine(),
        "versions": describe_versions(),
        "ended": dict(counts),
        "failed": failed,
        "memory": growth(memory),
        "memory_by_second": memory,
        "left_running": [line for line in metrics.splitlines() if "_num_requests_" in line],
    }
    write_text(args.out, json.dumps(report, indent=1) + "\n")
    say(f"soak: {dict(counts)}; {growth(memory)}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
