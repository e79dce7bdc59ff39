"""Readings of graphs, saved one by one: an interrupt loses at most one."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from comp.errors import CompExportError
from comp.utils.files import write_text
from export.graph.builder import GraphBuilder
from export.latency.clock import Clock
from export.onnxruntime.graph import OrtGraph

Feeds: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two graphs, the larger first, that differ by some blocks; a single graph has no blocks, only a rest.

    Attributes:
        name: name of the readings.
        tokens: the lengths to measure.
        blocks: number of blocks by which the graphs differ.
        graphs: builds them.
        feeds: inputs for a number of tokens: one for both graphs, or a list with one for each.
    """

    name: str
    tokens: tuple[int, ...]
    blocks: int
    graphs: Callable[[], list[GraphBuilder]]
    feeds: Callable[[int], Feeds | list[Feeds]]


@dataclass(frozen=True)
class Timing:
    """Milliseconds by tokens: of one of the blocks by which the graphs differ, and of the smaller graph."""

    block: dict[int, float]
    rest: dict[int, float]


class Readings:
    """The readings of a profile so far; a file with other settings is ignored."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._found: dict[str, list[Timing]] = {}
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["settings"] == self._settings:
                self._found = {
                    name: [Timing(*map(_numbered, parts)) for parts in rounds]
                    for name, rounds in stored["readings"].items()
                }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CompExportError(
                f"{path} is damaged ({error}): delete it and run the command again"
            ) from error

    def __getitem__(self, name: str) -> Timing:
        """The median over the rounds."""
        rounds = self._found[name]
        return Timing(
            {n: median(each.block[n] for each in rounds) for n in rounds[0].block},
            {n: median(each.rest[n] for each in rounds) for n in rounds[0].rest},
        )

    def __len__(self) -> int:
        """Number of readings, of all names and rounds."""
        return sum(map(len, self._found.values()))

    def rounds(self, name: str) -> int:
        """Number of rounds read under this name."""
        return len(self._found.get(name, ()))

    def add(self, name: str, reading: Timing) -> None:
        """Add a reading of one more round, and save."""
        self._found.setdefault(name, []).append(reading)
        readings = {
            each: [(timing.block, timing.rest) for timing in rounds]
            for each, rounds in self._found.items()
        }
        write_text(self.path, json.dumps({"settings": self._settings, "readings": readings}))


def _numbered(times: dict[str, float]) -> dict[int, float]:
    return {int(tokens): ms for tokens, ms in times.items()}


def measured(pair: Pair, clock: Clock) -> Timing:
    """Build a pair, time it, and discard it: the median over the repeats of their differences."""
    with TemporaryDirectory(prefix="comp-export-profile-") as directory:
        graphs = loaded(pair.graphs(), Path(directory), clock)
        block, rest = {}, {}
        for tokens in pair.tokens:
            feeds = pair.feeds(tokens)
            each = feeds if isinstance(feeds, list) else [feeds] * len(graphs)
            bound = [graph.bound(own) for graph, own in zip(graphs, each, strict=True)]
            times = clock.in_turn(bound)
            rest[tokens] = median(times[-1])
            block[tokens] = median(
                (large - small) / pair.blocks
                for large, small in zip(times[0], times[-1], strict=True)
            )
    return Timing(block, rest)


def loaded(builders: Iterable[GraphBuilder], directory: Path, clock: Clock) -> list[OrtGraph]:
    """Write graphs and load them; the files must stay as long as the graphs are used."""
    graphs = []
    for number, builder in enumerate(builders):
        path = directory / f"{number}.onnx"
        builder.save(path)
        graphs.append(OrtGraph(path, clock.providers, clock.threads))
    return graphs
