"""Latency tables for tests: times are simple functions of tokens, heads and channels."""

from collections.abc import Callable

from comp.latency.table import DenseBlock, LatencyTable, Measuring, Surface, Target, dense_block

TARGET = Target(flavour="onnxruntime", precision="float32", provider="made up", threads=1)
TOKENS = (1, 8, 16, 32, 64)
TOWER_LENGTH = 17


def surface(
    part, kind, time: Callable[[int, int, int], float], tokens=TOKENS, heads=(0,), channels=(0,)
):
    """The surface of ``time(tokens, heads, channels)`` at these points."""
    ms = tuple(tuple(tuple(time(t, h, c) for c in channels) for h in heads) for t in tokens)
    return Surface(part=part, kind=kind, tokens=tokens, heads=heads, channels=channels, ms=ms)


def table_of(
    blocks: tuple[DenseBlock, ...],
    attention: float = 0.01,
    ffn: float = 0.001,
    drop: float = 0.0,
    image_tokens: int = 16,
    model: str = "made-up",
) -> LatencyTable:
    """Attention has a time per token and head, an FFN per token and channel, all else little."""
    by_part = {part: [b for b in blocks if b.part == part] for part in ("vision", "language")}
    tower, language = by_part["vision"][0], by_part["language"][0]
    heads, widths = tuple(range(1, language.heads + 1)), (0, language.channels)
    one = (TOWER_LENGTH,)

    def attended(t, h, c):
        return attention * t * h

    def fed(t, h, c):
        return ffn * t * c

    return LatencyTable(
        family="llava",
        model=model,
        blocks=blocks,
        image_tokens=image_tokens,
        tower_length=TOWER_LENGTH,
        target=TARGET,
        measuring=Measuring(rounds=1, warmup=0, repeats=1, seed=0),
        machine={},
        versions={},
        surfaces=(
            surface("vision", "fixed", lambda t, h, c: 0.5, one),
            surface("vision", "attention", lambda t, h, c: 0.1 * h, one, (1, tower.heads)),
            surface("vision", "ffn", lambda t, h, c: 0.01 * c, one, channels=(0, tower.channels)),
            surface("embedding", "fixed", lambda t, h, c: 0.001 * t),
            surface("language", "attention", attended, heads=heads),
            surface("language", "ffn", fed, channels=widths),
            surface("language", "last", lambda t, h, c: 0.25 + attended(t, h, c), heads=heads),
            surface("language", "drop", lambda t, h, c: drop * t, heads=heads),
        ),
    )


def table_for(adapter, **times) -> LatencyTable:
    """A table of an adapter's model."""
    return table_of(tuple(dense_block(block) for block in adapter.blocks), **times)
