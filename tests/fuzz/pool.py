"""Processes that try inputs within limits; a crash or a hang is an outcome."""

import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic

from tests.fuzz.outcomes import Outcome

Job = tuple[str, int]  # kind and seed
Trial = Callable[[Path, Path, str, int], Outcome]  # base, scratch, kind, seed


@dataclass
class Limits:
    """Limits of one worker.

    Attributes:
        seconds: time for one input.
        starting: additional seconds for the first input, which also loads the libraries.
        gigabytes: memory that the worker may write to.
    """

    seconds: float = 120.0
    starting: float = 120.0
    gigabytes: float = 6.0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    until: float = 0.0
    fresh: bool = True


def tried(
    trial: Trial, jobs: Sequence[Job], base: Path, scratch: Path, workers: int, limits: Limits
) -> Iterator[Outcome]:
    """Yield the outcomes of all jobs as they finish.

    Args:
        trial: a function of a module; it does one job.
        jobs: kinds and seeds.
        base: the folder that all trials read; no trial changes it.
        scratch: a folder for the workers.
        workers: the number of processes.
        limits: the limits of each process.
    """
    left, crew = list(reversed(jobs)), []
    for number in range(min(workers, len(jobs))):
        crew.append(_started(trial, base, scratch / str(number), limits))
    places = {id(worker): scratch / str(number) for number, worker in enumerate(crew)}
    while crew:
        for worker in crew:
            if worker.job is None and left:
                worker.job = left.pop()
                more = limits.starting if worker.fresh else 0.0
                worker.until = monotonic() + limits.seconds + more
                worker.pipe.send(worker.job)
        crew = [worker for worker in crew if worker.job is not None or _dismiss(worker)]
        if not crew:
            return
        pause = max(0.0, min(worker.until for worker in crew) - monotonic())
        wait([worker.pipe for worker in crew], timeout=pause)
        for place, worker in enumerate(crew):
            outcome = _result(worker)
            if outcome is None:
                continue
            yield outcome
            if worker.process.is_alive() and worker.job is not None:
                worker.job, worker.fresh = None, False
            else:
                folder = places.pop(id(worker))
                crew[place] = _started(trial, base, folder, limits)
                places[id(crew[place])] = folder


def _started(trial: Trial, base: Path, scratch: Path, limits: Limits) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(theirs, trial, base, scratch, limits), daemon=True
    )
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _dismiss(worker: _Worker) -> bool:
    worker.pipe.close()  # it ends when it reads the end
    worker.process.join(10)
    worker.process.kill()
    return False


def _result(worker: _Worker) -> Outcome | None:
    """Return the outcome of a worker, if there is one; end a worker that is over its time."""
    assert worker.job is not None
    kind, seed = worker.job
    try:
        if worker.pipe.poll():
            return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(10)
        code = worker.process.exitcode
        name = signal.Signals(-code).name if code and code < 0 else f"exit {code}"
        worker.job = None
        return Outcome(kind, seed, "other", f"the process ended: {name}")
    if monotonic() > worker.until:
        worker.process.kill()
        worker.process.join()
        worker.job = None
        return Outcome(kind, seed, "other", "no end within its time")
    return None


def _work(pipe: Connection, trial: Trial, base: Path, scratch: Path, limits: Limits) -> None:
    size = int(limits.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            kind, seed = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = trial(base, scratch, kind, seed)
        except BaseException:
            outcome = Outcome(kind, seed, "other", traceback.format_exc(limit=-6))
        pipe.send(outcome)
