"""Choose the evaluation of an artifact by its task."""

from pathlib import Path

from comp.plan import Task
from comp.registry.code import resolve
from comp.registry.tasks import TASKS
from export.artifact.load import kind_of, read_manifest
from export.tensorrt.manifest import read_engine_manifest
from serve.evaluation.scores import Measure, MeasureOptions


def measure_of(task: Task, options: MeasureOptions) -> Measure:
    """Return the measure of a task (``comp.registry.tasks.TaskEntry.measure``)."""
    measure: Measure = resolve(TASKS[task].measure)(options)
    return measure


def task_of(directory: Path) -> Task:
    """The task of an artifact's or engines' model."""
    if kind_of(directory) == "tensorrt":
        return read_engine_manifest(directory).artifact.task
    return read_manifest(directory).task
