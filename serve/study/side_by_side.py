"""Run tasks in parallel threads, to prepare cells in several processes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from serve.study.processes import end_processes

PATIENCE = 0.1  # seconds between two checks of unfinished tasks

Made = TypeVar("Made")


def side_by_side(tasks: Sequence[Callable[[], Made]], jobs: int) -> list[Made]:
    """Run tasks in threads, ``jobs`` at a time, each running processes (``run_process``).

    If the wait is interrupted (by Ctrl-C, or by a task that raises), these processes are killed.

    Returns:
        The results of the tasks, in their order.
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
