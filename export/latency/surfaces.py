"""Compute surfaces from times, for all families."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comp.latency.table import Kind, Surface, Where
from export.latency.blocks import drop_name, name_of
from export.latency.grid import Axes, monotone
from export.latency.timings import Readings, Timing

Tower: TypeAlias = Literal["vision", "language"]
DIGITS = 6  # of a millisecond: nanoseconds


def block_surfaces(part: Tower, axes: Axes, readings: Readings) -> tuple[Surface, Surface]:
    """The attention time by heads, and the time that the FFN adds by channels."""
    narrow, one = axes.channels[0], axes.heads[0]
    attention = _times([readings[name_of(part, heads, narrow)] for heads in axes.heads], axes)
    widths = _times([readings[name_of(part, one, channels)] for channels in axes.channels], axes)
    return (
        surface(part, "attention", axes.tokens, attention[..., None], axes.heads),
        surface(
            part, "ffn", axes.tokens, (widths - widths[:, :1])[:, None, :], channels=axes.channels
        ),
    )


def end_surfaces(part: Tower, axes: Axes, readings: Readings) -> tuple[Surface, Surface]:
    """The time of the last block with what comes after it, and that of a drop place, by heads."""
    narrow = axes.channels[0]
    ends = [readings[name_of(part, heads, narrow)] for heads in axes.heads]
    last = [[reading.rest[n] for reading in ends] for n in axes.tokens]
    places = _times([readings[drop_name(part, heads)] for heads in axes.heads], axes)
    return (
        surface(part, "last", axes.tokens, np.array(last)[..., None], axes.heads),
        surface(part, "drop", axes.tokens, places[..., None], axes.heads),
    )


def _times(readings: Sequence[Timing], axes: Axes) -> NDArray[np.float64]:
    """Milliseconds of a block by tokens and reading."""
    return np.array([[reading.block[n] for reading in readings] for n in axes.tokens])


def surface(
    part: Where,
    kind: Kind,
    tokens: tuple[int, ...],
    times: NDArray[np.float64],
    heads: tuple[int, ...] = (0,),
    channels: tuple[int, ...] = (0,),
) -> Surface:
    """Round and clean times: noise may give differences below zero, or less time for more work."""
    cleaned = np.round(monotone(np.maximum(times, 0.0)), DIGITS)
    ms = tuple(tuple(tuple(row) for row in plane) for plane in cleaned.tolist())
    return Surface(part=part, kind=kind, tokens=tokens, heads=heads, channels=channels, ms=ms)
