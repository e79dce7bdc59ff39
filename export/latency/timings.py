"""Readings of graphs, kept on disk as they come: an interrupt loses one at most."""

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
    """Two graphs, the larger first, that differ by some blocks; a single one is all rest.

    Attributes:
        name: of the readings.
        tokens: to measure on.
        blocks: by which they differ.
        graphs: builds them.
        feeds: of both, or of each, for a number of tokens.
    """

    name: str
    tokens: tuple[int, ...]
    blocks: int
    graphs: Callable[[], list[GraphBuilder]]
    feeds: Callable[[int], Feeds | list[Feeds]]


@dataclass(frozen=True)
class Timing:
    """Milliseconds by tokens: of one block by which the graphs differ, and of the smaller graph."""

    block: dict[int, float]
    rest: dict[int, float]


class Readings:
    """The readings of a profile so far, of these settings; a file of other settings is not taken up."""

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
        """The median of the rounds."""
        rounds = self._found[name]
        return Timing(
            {n: median(each.block[n] for each in rounds) for n in rounds[0].block},
            {n: median(each.rest[n] for each in rounds) for n in rounds[0].rest},
        )

    def __len__(self) -> int:
        """Of all names, in all rounds."""
        return sum(map(len, self._found.values()))

    def rounds(self, name: str) -> int:
        """How often it was read."""
        return len(self._found.get(name, ()))

    def add(self, name: str, reading: Timing) -> None:
        """Keep a reading of one more round, on disk too."""
        self._found.setdefault(name, []).append(reading)
        readings = {
            each: [(found.block, found.rest) for found in rounds]
            for each, rounds in self._found.items()
        }
        write_text(self.path, json.dumps({"settings": self._settings, "readings": readings}))


def _numbered(times: dict[str, float]) -> dict[int, float]:
    return {int(tokens): ms for tokens, ms in times.items()}


def measured(pair: Pair, clock: Clock) -> Timing:
    """Build a pair, run it, and forget it: the median over the repeats of the difference in each."""
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
    """Write graphs and load them; the files must stay until the graphs are gone."""
    found = []
    for number, builder in enumerate(builders):
        path = directory / f"{number}.onnx"
        builder.save(path)
        found.append(OrtGraph(path, clock.providers, clock.threads))
    return found
