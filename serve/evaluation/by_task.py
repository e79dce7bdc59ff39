"""Measuring an artifact by what it is for: each task has its metric."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.plan import Task
from export.artifact.load import kind_of, read_manifest
from export.tensorrt.manifest import read_engine_manifest
from serve.evaluation import (
    captions as evaluate_captions,
)
from serve.evaluation import (
    questions as evaluate,
)
from serve.evaluation import (
    retrieval as evaluate_retrieval,
)
from serve.evaluation import (
    statements as evaluate_statements,
)
from serve.evaluation.scores import Evaluation
from serve.generation.options import GenerationOptions

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Measure:
    """How a task is measured.

    Attributes:
        metric: of the whole, in words.
        run: engine, examples and a progress callback to the scores.
    """

    metric: str
    run: Callable[[Any, Any, Advance], Evaluation]

    def __call__(self, engine: Any, examples: Any, advance: Advance) -> Evaluation:
        return self.run(engine, examples, advance)

    @classmethod
    def of(
        cls, task: Task, batch_size: int, max_new_tokens: int, gallery: int, seed: int
    ) -> "Measure":
        """The measure of a task: how many at a time, how long answers are, how many compete."""
        options = GenerationOptions(max_new_tokens=max_new_tokens, seed=seed)
        known: dict[Task, Measure] = {
            "question": cls(
                evaluate.METRIC,
                lambda engine, examples, advance: evaluate.evaluate(
                    engine, examples, options, batch_size, advance
                ),
            ),
            "caption": cls(
                evaluate_captions.METRIC,
                lambda engine, examples, advance: evaluate_captions.evaluate_captions(
                    engine, examples, options, batch_size, advance
                ),
            ),
            "statement": cls(
                evaluate_statements.METRIC,
                lambda engine, examples, advance: evaluate_statements.evaluate_statements(
                    engine, examples, batch_size, advance
                ),
            ),
            "retrieval": cls(
                f"{evaluate_retrieval.METRIC}, among {gallery}",
                lambda engine, examples, advance: evaluate_retrieval.evaluate_retrieval(
                    engine, examples, gallery, advance
                ),
            ),
        }
        return known[task]


def task_of(directory: Path) -> Task:
    """What the model of an artifact, or of engines, does."""
    if kind_of(directory) == "tensorrt":
        return read_engine_manifest(directory).artifact.task
    return read_manifest(directory).task
