"""Evaluate statements about two images: the share that an artifact judges correctly."""

from collections.abc import Callable

from comp.data.example import PairExample
from serve.engines.blip_judge import Judge
from serve.evaluation.scores import (
    Evaluation,
    Examples,
    Measure,
    MeasureOptions,
    Score,
    chunks,
)

METRIC = "accuracy"


def evaluate_statements(
    engine: Judge,
    statements: Examples[PairExample],
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Judge every statement.

    Args:
        engine: the artifact.
        statements: read once, in order.
        batch_size: statements of equal length judged together.
        advance: called after every chunk with its number of statements.
    """
    right: dict[str, int] = {}
    counts: dict[str, int] = {}
    verdicts: list[str] = []
    for chunk in chunks(statements):
        judged = engine.judge_batch([(each.images, each.statement) for each in chunk], batch_size)
        for each, judgement in zip(chunk, judged, strict=True):
            counts[each.kind] = counts.get(each.kind, 0) + 1
            hit = judgement.verdict == each.answer
            right[each.kind] = right.get(each.kind, 0) + hit
            verdicts.append(str(judgement.verdict).lower())
        advance(len(chunk))
    overall = Score(sum(right.values()), sum(counts.values()))
    kinds = {kind: Score(right[kind], counts[kind]) for kind in counts}
    return Evaluation(overall, dict(kinds), tuple(verdicts))


def measure(options: MeasureOptions) -> Measure:
    """The measure of an engine's statements."""
    return Measure(
        METRIC,
        lambda engine, examples, advance: evaluate_statements(
            engine, examples, options.batch_size, advance
        ),
    )
