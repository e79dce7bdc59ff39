"""Measure in rounds: every contestant in turn, its dense and its compressed model in turn.

So a slow spell of the machine affects all alike. Every round has a new image.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from comp.errors import CompExportError
from comp.utils.console import say
from contestants import CONTESTANTS, PREPARE
from rivals.base import Answered, Loaded, Stage
from run_files import BOTH, RunFiles, Which

SHARED = {"torch-compile": "torch"}  # uses the other's models
MARGIN, WORKSPACE = 1.15, 2 * 2**30  # GPU memory beyond the weights


@dataclass(frozen=True)
class RoundOptions:
    """Number of rounds, and the size of their images (``width, height`` in pixels)."""

    warmup: int
    repeats: int
    seed: int
    picture: tuple[int, int]


@dataclass
class Record:
    """The results of one contestant; ``errors`` say why a model has no times."""

    group: int
    notes: dict[Which, dict[str, Any]] = field(default_factory=dict)
    runs: dict[Which, list[Answered]] = field(default_factory=dict)
    errors: dict[Which, str] = field(default_factory=dict)


def measure(
    names: Sequence[str],
    make_stage: Callable[[], Stage],
    options: RoundOptions,
    prompt_tokens: int,
    memory: tuple[int, int] | None = None,
) -> dict[str, Record]:
    """Measure contestants.

    Args:
        names: names in ``CONTESTANTS``.
        make_stage: makes the stage of a group of contestants.
        options: rounds and images.
        prompt_tokens: number of prompt tokens that every contestant must report.
        memory: bytes of weights of both models together, and free bytes on the GPU: contestants that do
            not fit together are measured in groups, one after the other.

    Returns:
        A record for each name.
    """
    records: dict[str, Record] = {}
    for number, group in enumerate(groups_of(names, memory)):
        records |= {name: Record(number) for name in group}
        _measure_group(
            {name: records[name] for name in group}, make_stage(), options, prompt_tokens
        )
        _free()
    return records


def groups_of(names: Sequence[str], memory: tuple[int, int] | None) -> list[list[str]]:
    """Group contestants that fit into memory together, in order; torch's two stay together."""
    if memory is None:
        return [list(names)]
    weights, free = memory
    need = weights * MARGIN + WORKSPACE
    room = max(1, int(free // need))
    ordered = sorted(names, key=lambda name: list(CONTESTANTS).index(name))
    groups: list[list[str]] = []
    loads = room
    for name in ordered:
        shares = bool(groups) and SHARED.get(name) in groups[-1]
        if not shares and loads >= room:
            groups.append([])
            loads = 0
        groups[-1].append(name)
        loads += not shares
    return groups


def picture(options: RoundOptions, turn: int) -> Image.Image:
    """The image of a round: coloured noise, coarse enough to survive resizing."""
    rng = np.random.default_rng([options.seed, turn])
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return coarse.resize(options.picture, Image.Resampling.BICUBIC)


def _measure_group(
    records: dict[str, Record], stage: Stage, options: RoundOptions, prompt_tokens: int
) -> None:
    loaded: dict[tuple[str, Which], Loaded] = {}
    # TensorRT first: it builds missing engines while the GPU is free.
    for name, which in _in_turn(sorted(records, key=lambda name: name != "tensorrt")):
        say(f"loading {name}, {which}")
        try:
            loaded[name, which] = CONTESTANTS[name](stage, which)
        except Exception as error:
            _failed(records[name], name, which, error)
    for turn in range(options.warmup + options.repeats):
        image = picture(options, turn)
        for name, which in _in_turn(records):
            if (name, which) not in loaded:
                continue
            try:
                done = loaded[name, which].answer(image)
                _check(done, prompt_tokens, stage.settings.new_tokens)
            except Exception as error:
                del loaded[name, which]
                _failed(records[name], name, which, error)
                continue
            if turn >= options.warmup:
                records[name].runs.setdefault(which, []).append(done)
    for (name, which), model in loaded.items():
        records[name].notes[which] = model.notes


def prepare(names: Sequence[str], files: RunFiles) -> None:
    """Make all files, so that a later run only loads and measures."""
    for name, which in _in_turn(names):
        try:
            PREPARE[name](files, which)
        except CompExportError as error:
            say(f"{name}, {which}: {error}")


def _in_turn(names: Iterable[str]) -> Iterator[tuple[str, Which]]:
    return ((name, which) for name in names for which in BOTH)


def _failed(record: Record, name: str, which: Which, error: Exception) -> None:
    """Record an error as the contestant's result; the others continue."""
    reason = " ".join(str(error).split())[:600]
    known = isinstance(error, CompExportError)
    record.errors[which] = reason if known else f"{type(error).__name__}: {reason}"
    record.runs.pop(which, None)
    say(f"{name}, {which}: {record.errors[which]}")


def _check(done: Answered, prompt_tokens: int, new_tokens: int) -> None:
    counts = (done.prompt_tokens, len(done.token_ids))
    if counts != (prompt_tokens, new_tokens):
        raise CompExportError(
            f"read {counts[0]} tokens and wrote {counts[1]}, the workload has {prompt_tokens} and "
            f"{new_tokens}"
        )


def _free() -> None:
    """Free memory before the next group."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()
