"""Preparing cells side by side: pruned and exported by several processes, to be measured alone later."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from serve.study.processes import end_processes

PATIENCE = 0.1  # seconds between two looks at what has not ended yet

Made = TypeVar("Made")


def side_by_side(tasks: Sequence[Callable[[], Made]], jobs: int) -> list[Made]:
    """Carry tasks out in threads, ``jobs`` at a time, each running processes (``run_process``).

    Whatever ends the wait (Ctrl-C, say, or a task that raises) ends these processes.

    Returns:
        What the tasks return, in their order.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            begun = [future for future in futures if not future.cancelled()]
            while wait(begun, PATIENCE).not_done:
                end_processes()
            raise
