"""Speed, memory and size of the dense and the compressed artifact, measured in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from PIL import Image

from serve.artifacts import BOTH, Which, engines_of, flops_ratio, is_verified
from serve.engine import Engine
from serve.machine import describe_machine, describe_versions, usable_cores
from serve.options import GenerationOptions
from serve.probe import Probe, probe
from serve.results import Generation, Timings

MEASURES = (
    "ttft_ms",
    "tpot_ms",
    "total_ms",
    "tokens_per_s",
    "prepare_ms",
    "vision_ms",
    "prefill_ms",
)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure on.

    Every answer has ``new_tokens`` tokens whatever the model says, so that both models do the same
    amount of work. ``threads`` is fixed for both; ``None`` takes all usable cores.
    """

    image: Image.Image
    prompt: str
    new_tokens: int = 32
    warmup: int = 3
    repeats: int = 20
    cold_starts: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Spread:
    """A measured quantity over the repeats."""

    median: float
    p90: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), float(np.percentile(values, 90)), min(values), max(values))


@dataclass(frozen=True)
class Measured:
    """One artifact: what the clock said, and what fresh processes said."""

    timings: tuple[Timings, ...]
    probes: tuple[Probe, ...]
    size_mb: float
    verified: bool
    prompt_tokens: int

    def spread(self, measure: str) -> Spread:
        """Spread of one of ``MEASURES``."""
        if measure == "tokens_per_s":
            return Spread.of([(t.decode_steps + 1) * 1000 / t.total_ms for t in self.timings])
        return Spread.of([getattr(t, measure) for t in self.timings])

    def to_dict(self) -> dict[str, Any]:
        spreads = {measure: self.spread(measure) for measure in MEASURES}
        return {
            **{measure: spread.median for measure, spread in spreads.items()},
            "peak_rss_mb": max(p.peak_rss_mb for p in self.probes),
            "cold_start_ms": median(p.cold_start_ms for p in self.probes),
            "load_ms": median(p.load_ms for p in self.probes),
            "size_mb": self.size_mb,
            "verified": self.verified,
            "spread": {measure: vars(spread) for measure, spread in spreads.items()},
        }


def bench(
    directories: dict[Which, Path],
    options: BenchOptions,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure both artifacts and compare them.

    Fresh processes come first (cold start, peak memory), then both engines in this one, in turn:
    dense, compressed, dense, compressed, … so that a slow spell of the machine hits both.

    Args:
        directories: of both artifacts.
        options: what to measure on.
        advance: told after every answer (``steps_of(options)`` in all).

    Returns:
        The report: ``dense``, ``compressed``, ``speedup`` (dense over compressed), ``flops_ratio``
        (compressed over dense), ``verified``, ``workload``, ``machine``, ``versions``.
    """
    threads = options.threads or usable_cores()
    probes: dict[Which, list[Probe]] = {which: [] for which in BOTH}
    for _ in range(options.cold_starts):
        for which in BOTH:
            probes[which].append(
                probe(
                    directories[which],
                    options.image,
                    options.prompt,
                    options.new_tokens,
                    options.device,
                    threads,
                )
            )
            advance()
    engines = engines_of(directories, options.device, threads)
    timings: dict[Which, list[Timings]] = {which: [] for which in BOTH}
    prompt_tokens = 0
    for turn in range(options.warmup + options.repeats):
        for which in BOTH:
            answer = _answer(engines[which], options)
            prompt_tokens = answer.prompt_tokens
            if turn >= options.warmup:
                timings[which].append(answer.timings)
            advance()
    measured = {
        which: Measured(
            timings=tuple(timings[which]),
            probes=tuple(probes[which]),
            size_mb=engines[which].manifest.size_bytes / 2**20,
            verified=is_verified(directories[which]),
            prompt_tokens=prompt_tokens,
        )
        for which in BOTH
    }
    return _report(measured, engines, options, threads)


def steps_of(options: BenchOptions) -> int:
    """How often ``bench`` calls ``advance``."""
    return 2 * (options.cold_starts + options.warmup + options.repeats)


def _answer(engine: Engine, options: BenchOptions) -> Generation:
    generation = GenerationOptions(max_new_tokens=options.new_tokens, ignore_eos=True)
    return engine.generate([options.image], options.prompt, generation)


def _report(
    measured: dict[Which, Measured],
    engines: dict[Which, Engine],
    options: BenchOptions,
    threads: int,
) -> dict[str, Any]:
    dense, compressed = measured["dense"], measured["compressed"]
    manifests = {which: engine.manifest for which, engine in engines.items()}
    speedup = {
        name: dense.spread(f"{name}_ms").median / value if value else None
        for name in ("ttft", "tpot", "total")
        for value in [compressed.spread(f"{name}_ms").median]
    }
    return {
        "dense": dense.to_dict(),
        "compressed": compressed.to_dict(),
        "speedup": speedup,
        "flops_ratio": flops_ratio(manifests["dense"], manifests["compressed"]),
        "rate": manifests["compressed"].rate,
        "verified": dense.verified and compressed.verified,
        "workload": {
            "prompt": options.prompt,
            "prompt_tokens": compressed.prompt_tokens,
            "image_tokens": manifests["compressed"].vision.image_tokens,
            "new_tokens": options.new_tokens,
            "warmup": options.warmup,
            "repeats": options.repeats,
            "cold_starts": options.cold_starts,
        },
        "artifact": {
            "flavour": manifests["compressed"].flavour,
            "precision": manifests["compressed"].precision,
        },
        "device": engines["compressed"].device,
        "threads": threads,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
