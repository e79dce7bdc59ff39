"""``comp-export profile`` from start to end: measure, resume, make the table, check it."""

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

PARTIAL = ".partial"  # behind the name of a table that is not finished


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure, and how well.

    Attributes:
        model: its name, for the table.
        rounds: passes over everything; a time is the median of theirs, so that a slow spell of the
            machine does not settle in a few points.
        held_out: random plans that predictions are checked on.
    """

    model: str
    blocks: Blocks
    clock: Clock
    rounds: int
    held_out: int

    def models(self) -> list[Model]:
        """That predictions are checked on."""
        return list(models(self.blocks, self.held_out)) if self.held_out else []

    @property
    def steps(self) -> int:
        """Readings of all rounds."""
        return self.rounds * len(self.jobs())

    def jobs(self) -> list[tuple[str, Callable[[], Timing]]]:
        """What a round measures, by name."""
        blocks, clock = self.blocks, self.clock
        return [
            *((pair.name, partial(measured, pair, clock)) for pair in blocks.pairs()),
            *(
                (model.name, partial(measured_whole, blocks, model, clock))
                for model in self.models()
            ),
        ]


def partial_of(out: Path) -> Path:
    """Where the readings of an unfinished table lie."""
    return out.with_name(out.name + PARTIAL)


def begun(asked: ProfileRequest, out: Path) -> Readings:
    """The readings so far of a table that is to be ``out``."""
    blocks = asked.blocks
    settings = {
        **_heading(asked),
        "text_tokens": blocks.text_tokens,
        "checkpoint": str(blocks.checkpoint.resolve()),
        "axes": {part: asdict(axes) for part, axes in blocks.axes.items()},
    }
    return Readings(partial_of(out), settings)


def profile(
    asked: ProfileRequest,
    out: Path,
    at: Callable[[float], None] = lambda done: None,
    note: Callable[[str], None] = lambda text: None,
) -> LatencyTable:
    """Measure what is not measured yet and write the table.

    Args:
        asked: what and how.
        out: the table's file; readings lie beside it until it is whole.
        at: told how many readings there are, of ``asked.steps``.
        note: told when a round begins.
    """
    readings, jobs = begun(asked, out), asked.jobs()
    for number in range(asked.rounds):
        note(f"round {number + 1} of {asked.rounds}: {len(jobs)} readings")
        for name, measure in jobs:
            if readings.rounds(name) <= number:
                readings.add(name, measure())
                at(len(readings))
    table = LatencyTable(
        **_heading(asked),
        image_tokens=asked.blocks.image_tokens,
        tower_length=asked.blocks.tower_length,
        surfaces=asked.blocks.surfaces(readings),
    )
    checked = tuple(_checked(table, model, readings) for model in asked.models())
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


def _heading(asked: ProfileRequest) -> dict[str, Any]:
    """What a table says besides its measurements: other readings do not go into it."""
    target, clock = asked.blocks.target, asked.clock
    blocks: tuple[DenseBlock, ...] = asked.blocks.dense_blocks()
    return {
        "family": asked.blocks.family,
        "model": asked.model,
        "blocks": [block.model_dump() for block in blocks],
        "target": Target(
            flavour=target.flavour,
            precision=target.precision,
            provider=clock.providers[0],
            threads=clock.threads,
        ).model_dump(),
        "measuring": Measuring(
            rounds=asked.rounds,
            warmup=clock.warmup,
            repeats=clock.repeats,
            seed=asked.blocks.seed,
        ).model_dump(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
