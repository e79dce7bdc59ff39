"""Measuring an artifact by what it is for: each task has its metric."""

from pathlib import Path

from comp.plan import Task
from comp.registry import TASKS, resolve
from export.artifact.load import kind_of, read_manifest
from export.tensorrt.manifest import read_engine_manifest
from serve.evaluation.scores import Measure, MeasureOptions


def measure_of(task: Task, options: MeasureOptions) -> Measure:
    """The measure of a task (``comp.registry.TaskEntry.measure``)."""
    found: Measure = resolve(TASKS[task].measure)(options)
    return found


def task_of(directory: Path) -> Task:
    """What the model of an artifact, or of engines, does."""
    if kind_of(directory) == "tensorrt":
        return read_engine_manifest(directory).artifact.task
    return read_manifest(directory).task
