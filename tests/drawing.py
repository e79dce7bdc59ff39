"""The figures of ``prune``: drawn only where a test looks at them, as they take half of a small prune."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from wrapt import when_imported

_wanted: list[bool] = []


@contextmanager
def drawn() -> Iterator[None]:
    """Draw the figures of the runs that are pruned inside the block."""
    _wanted.append(True)
    try:
        yield
    finally:
        _wanted.pop()


def leave_out_figures() -> None:
    """Let ``prune`` of this process draw inside of ``drawn`` alone; processes of its own draw always."""

    def replace(record: ModuleType) -> None:
        draw = record.save_figures
        record.save_figures = lambda *given: draw(*given) if _wanted else []

    when_imported("comp.pipeline.record")(replace)  # it loads torch, which not every test needs
