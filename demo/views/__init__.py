"""One view a task: what is asked on the left, both models' results on the right."""

from collections.abc import Callable
from typing import Any

from demo.pair import Pair
from demo.views import caption, question, retrieval, statement
from export.artifact.manifest import Task

# ``load_engine`` gives every task its engine, so a view knows what it is given.
VIEWS: dict[Task, Callable[[Pair[Any]], None]] = {
    "question": question.build,
    "caption": caption.build,
    "statement": statement.build,
    "retrieval": retrieval.build,
}
