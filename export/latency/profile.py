"""Run ``comp-export profile``: measure, resume, write the table, check it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comp.latency.table import DenseBlock, HeldOut, LatencyTable, Measuring, Target
from comp.utils.machine import describe_machine, describe_versions
from export.latency.blocks import Blocks
from export.latency.clock import Clock
from export.latency.held_out import Model, measured_whole, models, predicted
from export.latency.timings import Readings, Timing, measured

PARTIAL = ".partial"  # suffix of an unfinished table's name


@dataclass(frozen=True)
class ProfileRequest:
    """Request to measure a model's blocks.

    Attributes:
        model: its name, for the table.
        rounds: passes over all measurements; the median counts, so that a slow spell of the machine does
            not distort a few points.
        held_out: number of random plans to check predictions on.
    """

    model: str
    blocks: Blocks
    clock: Clock
    rounds: int
    held_out: int

    def models(self) -> list[Model]:
        """The models to check predictions on."""
        return list(models(self.blocks, self.held_out)) if self.held_out else []

    @property
    def steps(self) -> int:
        """Number of readings in all rounds."""
        return self.rounds * len(self.jobs())

    def jobs(self) -> list[tuple[str, Callable[[], Timing]]]:
        """The measurements of a round, by name."""
        blocks, clock = self.blocks, self.clock
        return [
            *((pair.name, partial(measured, pair, clock)) for pair in blocks.pairs()),
            *(
                (model.name, partial(measured_whole, blocks, model, clock))
                for model in self.models()
            ),
        ]


def partial_of(out: Path) -> Path:
    """The file with the readings of an unfinished table."""
    return out.with_name(out.name + PARTIAL)


def begun(request: ProfileRequest, out: Path) -> Readings:
    """Return the readings until now of the unfinished table ``out``."""
    blocks = request.blocks
    settings = {
        **_heading(request),
        "text_tokens": blocks.text_tokens,
        "checkpoint": str(blocks.checkpoint.resolve()),
        "axes": {part: asdict(axes) for part, axes in blocks.axes.items()},
    }
    return Readings(partial_of(out), settings)


def profile(
    request: ProfileRequest,
    out: Path,
    at: Callable[[float], None] = lambda done: None,
    note: Callable[[str], None] = lambda text: None,
) -> LatencyTable:
    """Take the missing readings and write the table.

    Args:
        request: the request.
        out: the table's file; readings are kept in its folder until it is complete.
        at: called with the number of readings so far, of ``request.steps``.
        note: called at the start of each round.
    """
    readings, jobs = begun(request, out), request.jobs()
    for number in range(request.rounds):
        note(f"round {number + 1} of {request.rounds}: {len(jobs)} readings")
        for name, measure in jobs:
            if readings.rounds(name) <= number:
                readings.add(name, measure())
                at(len(readings))
    table = LatencyTable(
        **_heading(request),
        image_tokens=request.blocks.image_tokens,
        tower_length=request.blocks.tower_length,
        surfaces=request.blocks.surfaces(readings),
    )
    checked = tuple(_checked(table, model, readings) for model in request.models())
    table = table.model_copy(update={"held_out": checked})
    table.save(out)
    readings.path.unlink(missing_ok=True)
    return table


def _checked(table: LatencyTable, model: Model, readings: Readings) -> HeldOut:
    (measured_ms,) = readings[model.name].rest.values()
    return HeldOut(
        name=model.name,
        image_tokens=model.on.image_tokens,
        text_tokens=model.on.text_tokens,
        predicted_ms=predicted(table, model),
        measured_ms=measured_ms,
    )


def _heading(request: ProfileRequest) -> dict[str, Any]:
    """The fields of a table besides its measurements; readings with other fields are not reused."""
    target, clock = request.blocks.target, request.clock
    blocks: tuple[DenseBlock, ...] = request.blocks.dense_blocks()
    return {
        "family": request.blocks.family,
        "model": request.model,
        "blocks": [block.model_dump() for block in blocks],
        "target": Target(
            flavour=target.flavour,
            precision=target.precision,
            provider=clock.providers[0],
            threads=clock.threads,
        ).model_dump(),
        "measuring": Measuring(
            rounds=request.rounds,
            warmup=clock.warmup,
            repeats=clock.repeats,
            seed=request.blocks.seed,
        ).model_dump(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
