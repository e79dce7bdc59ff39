"""Compare speed, memory and size of the dense and the compressed artifact, measured in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from comp.utils.machine import describe_machine, describe_versions, usable_cores
from serve.artifacts import BOTH, ArtifactVariant, Which, flops_ratio, is_verified
from serve.bench.cold_start import Probe, probe
from serve.bench.request import BenchRequest, perform
from serve.generation.results import Timings
from serve.loading import TaskEngine, engines_of

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
    """Request to measure, and the number of repeats.

    Both models run the same request with the same ``threads``; ``None`` takes all usable cores.
    """

    work: BenchRequest
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
    """The measurements of one artifact, in this process (``timings``) and in fresh ones (``probes``)."""

    timings: tuple[Timings, ...]
    probes: tuple[Probe, ...]
    size_mb: float
    verified: bool

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


@dataclass(frozen=True)
class Contestant:
    """One variant of both artifacts."""

    variant: ArtifactVariant
    directories: dict[Which, Path]


def bench(
    contestants: Sequence[Contestant],
    options: BenchOptions,
    started: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
) -> dict[str, Any]:
    """Measure both artifacts of every contestant and compare them.

    Fresh processes come first (cold start, peak memory), then all engines in this process, in turn:
    dense, compressed, of each contestant, then the same in reverse, … so that a slow spell of the machine
    affects all. (On a busy machine the first of a round is slow more often than the others.)

    Args:
        contestants: variants to measure; the report is about the first.
        options: the request, and the number of repeats.
        started: called with each part's name (fresh processes, runs in turn) and length; returns the callback
            for its progress.

    Returns:
        The report: ``dense``, ``compressed``, ``speedup`` (dense over compressed), ``flops_ratio``
        (compressed over dense), ``verified``, ``backend``, ``artifact`` of the first contestant;
        ``against``: the same of each other one; ``workload``, ``machine``, ``versions``.
    """
    threads = options.threads or usable_cores()
    probes: dict[tuple[int, Which], list[Probe]] = {}
    advance = started("fresh processes", 2 * len(contestants) * options.cold_starts)
    for _ in range(options.cold_starts):
        for number, contestant in enumerate(contestants):
            for which in BOTH:
                measurement = _probe(contestant, which, options, threads)
                probes.setdefault((number, which), []).append(measurement)
                advance()
    engines = [engines_of(c.directories, options.device, threads, c.variant) for c in contestants]
    timings: dict[tuple[int, Which], list[Timings]] = {key: [] for key in probes}
    size: dict[str, int] = {}
    advance = started("runs in turn", len(timings) * (options.warmup + options.repeats))
    for turn in range(options.warmup + options.repeats):
        for number, which in reversed(timings) if turn % 2 else timings:
            done = perform(engines[number][which], options.work)
            size = done.size
            if turn >= options.warmup:
                timings[number, which].append(done.timings)
            advance()
    reports = []
    for number, contestant in enumerate(contestants):
        measured = {
            which: Measured(
                timings=tuple(timings[number, which]),
                probes=tuple(probes[number, which]),
                size_mb=engines[number][which].manifest.size_bytes / 2**20,
                verified=is_verified(contestant.directories[which]),
            )
            for which in BOTH
        }
        reports.append(_report(contestant, measured, engines[number]))
    return {
        **reports[0],
        "against": reports[1:],
        "workload": _workload(options, size),
        "threads": threads,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _probe(contestant: Contestant, which: Which, options: BenchOptions, threads: int) -> Probe:
    return probe(
        contestant.directories[which],
        options.work,
        options.device,
        threads,
        contestant.variant.provider,
        contestant.variant.backend,
    )


def _report(
    contestant: Contestant, measured: dict[Which, Measured], engines: dict[Which, TaskEngine]
) -> dict[str, Any]:
    dense, compressed = measured["dense"], measured["compressed"]
    manifests = {which: engine.manifest for which, engine in engines.items()}
    speedup = {
        name: dense.spread(f"{name}_ms").median / value if value else None
        for name in ("ttft", "tpot", "total")
        for value in [compressed.spread(f"{name}_ms").median]
    }
    engine = engines["compressed"]
    return {
        "name": contestant.variant.label,
        "dense": dense.to_dict(),
        "compressed": compressed.to_dict(),
        "speedup": speedup,
        "flops_ratio": flops_ratio(manifests["dense"], manifests["compressed"]),
        "rate": manifests["compressed"].rate,
        "verified": dense.verified and compressed.verified,
        "backend": engine.backend,
        "provider": engine.provider,
        "device": engine.device,
        "artifact": {
            "flavour": engine.manifest.flavour,
            "precision": engine.manifest.precision,
        },
    }


def _workload(options: BenchOptions, size: dict[str, int]) -> dict[str, Any]:
    work = options.work
    return {
        "task": work.task,
        "texts": list(work.texts),
        **size,
        "new_tokens": work.new_tokens,
        "warmup": options.warmup,
        "repeats": options.repeats,
        "cold_starts": options.cold_starts,
    }
