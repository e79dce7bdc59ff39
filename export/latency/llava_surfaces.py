"""From readings of a LLaVA's blocks to the surfaces of its table."""

from collections.abc import Sequence
from statistics import median
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comp.latency_table import Kind, Surface, Where
from export.latency.grid import Axes, monotone
from export.latency.llava_blocks import LlavaBlocks, drop_name, name_of
from export.latency.readings import Reading, Readings

Tower: TypeAlias = Literal["vision", "language"]
DIGITS = 6  # of a millisecond: nanoseconds


def surfaces_of(blocks: LlavaBlocks, readings: Readings) -> tuple[Surface, ...]:
    """Every surface that ``comp.latency_requests`` reads for a LLaVA."""
    tower, language = blocks.axes["vision"], blocks.axes["language"]
    fixed = median(
        readings[name_of("vision", heads, tower.channels[0])].rest[tower.tokens[0]]
        for heads in tower.heads
    )
    last = [
        [
            readings[name_of("language", heads, language.channels[0])].rest[n]
            for heads in language.heads
        ]
        for n in language.tokens
    ]
    places = [
        [readings[drop_name(heads)].block[n] for heads in language.heads] for n in language.tokens
    ]
    embedding = [readings["embedding"].rest[n] for n in language.tokens]
    return (
        _surface("vision", "fixed", tower.tokens, np.array([[[fixed]]])),
        *_of_blocks("vision", tower, readings),
        _surface("embedding", "fixed", language.tokens, np.array(embedding)[:, None, None]),
        *_of_blocks("language", language, readings),
        _surface("language", "last", language.tokens, np.array(last)[..., None], language.heads),
        _surface("language", "drop", language.tokens, np.array(places)[..., None], language.heads),
    )


def _of_blocks(part: Tower, axes: Axes, readings: Readings) -> tuple[Surface, Surface]:
    """Attention by heads, and what the FFN adds by channels."""
    narrow, one = axes.channels[0], axes.heads[0]
    attention = _times([readings[name_of(part, heads, narrow)] for heads in axes.heads], axes)
    widths = _times([readings[name_of(part, one, channels)] for channels in axes.channels], axes)
    return (
        _surface(part, "attention", axes.tokens, attention[..., None], axes.heads),
        _surface(
            part, "ffn", axes.tokens, (widths - widths[:, :1])[:, None, :], channels=axes.channels
        ),
    )


def _times(readings: Sequence[Reading], axes: Axes) -> NDArray[np.float64]:
    """Milliseconds of a block, by tokens and then by reading."""
    return np.array([[reading.block[n] for reading in readings] for n in axes.tokens])


def _surface(
    part: Where,
    kind: Kind,
    tokens: tuple[int, ...],
    times: NDArray[np.float64],
    heads: tuple[int, ...] = (0,),
    channels: tuple[int, ...] = (0,),
) -> Surface:
    """A difference of two times may come out below zero by noise, and a time above one of more work."""
    found = np.round(monotone(np.maximum(times, 0.0)), DIGITS)
    ms = tuple(tuple(tuple(row) for row in plane) for plane in found.tolist())
    return Surface(part=part, kind=kind, tokens=tokens, heads=heads, channels=channels, ms=ms)
