"""Evaluate answers: the share of right ones, overall and for each kind of question."""

from collections.abc import Callable, Sequence

from comp.data.example import Example
from comp.metrics.exact_match import exact_match
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


def evaluate(
    engine: Engine | BlipGenerator,
    examples: Examples[Example],
    options: GenerationOptions,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Answer every question and score the answers.

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
    values: dict[str, list[float]] = {}
    predictions: list[str] = []
    shared = False
    for chunk in chunks(examples):
        requests = [([example.image], example.question) for example in chunk]
        answers = engine.generate_batch(requests, options, batch_size)
        for example, answer in zip(chunk, answers, strict=True):
            shared = shared or bool(example.answers)
            values.setdefault(example.kind, []).append(_value(example, answer.text))
            predictions.append(answer.text)
        advance(len(chunk))
    kinds = {kind: _figure(each, shared) for kind, each in values.items()}
    everything = [value for each in values.values() for value in each]
    return Evaluation(_figure(everything, shared), kinds, tuple(predictions))


def _value(example: Example, answer: str) -> float:
    """The score of an answer, in [0, 1]."""
    if example.answers:
        return vqa_accuracy(answer, example.answers)
    return float(exact_match(example.answer, answer))


def _figure(values: Sequence[float], shared: bool) -> Figure:
    """A count of right answers, or a mean if answers can be partly right."""
    return Mean.of(values, share=True) if shared else Score(int(sum(values)), len(values))


def measure(options: MeasureOptions) -> Measure:
    """The measure of an engine's answers."""
    return Measure(
        METRIC,
        lambda engine, examples, advance: evaluate(
            engine, examples, options.generation, options.batch_size, advance
        ),
    )
