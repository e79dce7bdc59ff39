"""Answers of an artifact: exact match, overall and for each kind of question."""

from collections.abc import Callable, Iterator
from typing import Protocol

from comp.data.example import Example
from comp.data.scoring import exact_match
from serve.engine import Engine
from serve.options import GenerationOptions
from serve.scores import Evaluation, Score

METRIC = "exact match"
CHUNK = 128  # questions held in memory at a time, sorted into batches of equal length


class Examples(Protocol):
    """Questions by index, read only when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


def evaluate(
    engine: Engine,
    examples: Examples,
    options: GenerationOptions,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Ask every question and compare the answers.

    Args:
        engine: the artifact.
        examples: the questions; read once, in order.
        options: how to generate.
        batch_size: questions of equal length answered together (the answers do not depend on it).
        advance: told after every chunk how many questions it had.

    Returns:
        Kinds in the order in which they first occur.
    """
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    predictions: list[str] = []
    for chunk in _chunks(examples):
        requests = [([example.image], example.question) for example in chunk]
        answers = engine.generate_batch(requests, options, batch_size)
        for example, answer in zip(chunk, answers, strict=True):
            asked[example.kind] = asked.get(example.kind, 0) + 1
            hit = exact_match(example.answer, answer.text)
            right[example.kind] = right.get(example.kind, 0) + hit
            predictions.append(answer.text)
        advance(len(chunk))
    overall = Score(sum(right.values()), sum(asked.values()))
    return Evaluation(overall, {k: Score(right[k], asked[k]) for k in asked}, tuple(predictions))


def _chunks(examples: Examples) -> Iterator[list[Example]]:
    for first in range(0, len(examples), CHUNK):
        yield [examples[i] for i in range(first, min(first + CHUNK, len(examples)))]
