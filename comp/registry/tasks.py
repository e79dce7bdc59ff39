"""Tasks of models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskEntry:
    """A task of models, of any family.

    Attributes:
        measure: makes the measure of an engine's answers (``serve.evaluation.scores.Measure``).
        view: builds the demo's page.
    """

    measure: str
    view: str


TASKS: dict[str, TaskEntry] = {
    "question": TaskEntry("serve.evaluation.questions:measure", "demo.views.question:build"),
    "caption": TaskEntry("serve.evaluation.captions:measure", "demo.views.caption:build"),
    "statement": TaskEntry("serve.evaluation.statements:measure", "demo.views.statement:build"),
    "retrieval": TaskEntry("serve.evaluation.retrieval:measure", "demo.views.retrieval:build"),
}
