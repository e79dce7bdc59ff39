"""Compute the surfaces of a LLaVA's table from readings of its blocks."""

from statistics import median

import numpy as np

from comp.latency.table import Surface
from comp.plan import Part
from export.latency.blocks import drop_name, name_of
from export.latency.grid import Axes
from export.latency.surfaces import block_surfaces, surface
from export.latency.timings import Readings


def surfaces_of(axes: dict[Part, Axes], readings: Readings) -> tuple[Surface, ...]:
    """Every surface that ``comp.latency.request`` reads for a LLaVA."""
    tower, language = axes["vision"], axes["language"]
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
        [readings[drop_name("language", heads)].block[n] for heads in language.heads]
        for n in language.tokens
    ]
    embedding = [readings["embedding"].rest[n] for n in language.tokens]
    return (
        surface("vision", "fixed", tower.tokens, np.array([[[fixed]]])),
        *block_surfaces("vision", tower, readings),
        surface("embedding", "fixed", language.tokens, np.array(embedding)[:, None, None]),
        *block_surfaces("language", language, readings),
        surface("language", "last", language.tokens, np.array(last)[..., None], language.heads),
        surface("language", "drop", language.tokens, np.array(places)[..., None], language.heads),
    )
