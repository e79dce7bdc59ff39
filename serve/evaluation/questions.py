"""Evaluate answers: the share of right ones, overall and for each kind of question."""

from collections.abc import Callable, Sequence

from comp.data.example import Example
from comp.metrics.exact_match import exact_match
from comp.metrics.token_f1 import are_long, token_f1
from comp.metrics.vqa_accuracy import vqa_accuracy
from serve.engines.blip_generator import BlipGenerator
from serve.engines.llava import Engine
from serve.evaluation.scores import (
    Evaluation,
    Examples,
    Figure,
    Mean,
    Measure,
    MeasureOptions,
    Score,
    chunks,
)
from serve.generation.options import GenerationOptions

METRIC = "exact match; where several people answered, the official accuracy of VQAv2"
LONG_METRIC = "token F1 (references have more than three words in the median)"
EXACT, LONG = "exact match", "token F1"


def evaluate(
    engine: Engine | BlipGenerator,
    examples: Examples[Example],
    options: GenerationOptions,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Answer every question and score the answers.

    Where several people answered, the score is VQA accuracy. Otherwise it is exact match, or token F1 if the
    references have more than three words in the median; exact match is then a kind of its own.

    Args:
        engine: the artifact.
        examples: the questions; read once, in order. ``answers``, if there are any, are several people's
            reference answers.
        options: options of generation.
        batch_size: questions of equal length answered together (the answers do not depend on it).
        advance: called after every chunk with its number of questions.

    Returns:
        Scores with kinds in the order of their first occurrence.
    """
    kinds: list[str] = []
    predictions: list[str] = []
    references: list[str] = []
    official: list[float | None] = []  # VQA accuracy where several people answered
    for chunk in chunks(examples):
        requests = [([example.image], example.question) for example in chunk]
        answers = engine.generate_batch(requests, options, batch_size)
        for example, answer in zip(chunk, answers, strict=True):
            kinds.append(example.kind)
            predictions.append(answer.text)
            references.append(example.answer)
            several = example.answers
            official.append(vqa_accuracy(answer.text, several) if several else None)
        advance(len(chunk))
    exact = [float(exact_match(*each)) for each in zip(references, predictions, strict=True)]
    shared = any(value is not None for value in official)
    if shared or not are_long(references):
        pairs = zip(official, exact, strict=True)
        values = [right if value is None else value for value, right in pairs]
        by_kind, overall = _by_kind(kinds, values, shared), _figure(values, shared)
        return Evaluation(overall, by_kind, tuple(predictions))
    values = [token_f1(*each) for each in zip(references, predictions, strict=True)]
    by_kind = _by_kind(kinds, values, graded=True) | {EXACT: _figure(exact, graded=False)}
    overall = _figure(values, graded=True)
    return Evaluation(overall, by_kind, tuple(predictions), LONG, LONG_METRIC)


def _by_kind(kinds: Sequence[str], values: Sequence[float], graded: bool) -> dict[str, Figure]:
    """The figure of each kind, in the order of their first occurrence."""
    of: dict[str, list[float]] = {}
    for kind, value in zip(kinds, values, strict=True):
        of.setdefault(kind, []).append(value)
    return {kind: _figure(each, graded) for kind, each in of.items()}


def _figure(values: Sequence[float], graded: bool) -> Figure:
    """A count of right answers, or a mean if answers can be partly right."""
    return Mean.of(values, share=True) if graded else Score(int(sum(values)), len(values))


def measure(options: MeasureOptions) -> Measure:
    """The measure of an engine's answers."""
    return Measure(
        METRIC,
        lambda engine, examples, advance: evaluate(
            engine, examples, options.generation, options.batch_size, advance
        ),
    )
