"""Run an engine once before its first request: the first steps of a runtime take many times as long."""

import threading

from serve.engines.llava import Engine, Prepared
from serve.generation.options import GenerationOptions
from serve.generation.results import Event, Finished
from serve.scheduling.one_by_one import OneByOne
from serve.scheduling.requests import Request, Work
from serve.scheduling.worker import Worker

WORDS = "?"
OPTIONS = GenerationOptions(max_new_tokens=2, ignore_eos=True)
SECONDS = 60.0  # a larger model goes on while the server starts


def warm_up(engine: Engine, worker: Worker) -> None:
    """Answer words alone through the worker; return when that has ended, or after a minute.

    An error that comes later is that of the first request too, which reports it.

    Raises:
        CompExportError: the engine cannot answer them.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    def follow(event: Event | BaseException) -> None:
        if isinstance(event, BaseException):
            errors.append(event)
        if isinstance(event, Finished | BaseException):
            ended.set()

    prepared = engine.prepare([], WORDS, OPTIONS)
    worker.submit(Request(_work(engine, worker, prepared), OPTIONS, follow))
    if ended.wait(SECONDS) and errors:
        raise errors[0]


def _work(engine: Engine, worker: Worker, prepared: Prepared) -> Work:
    if isinstance(worker, OneByOne):
        return lambda chosen: engine.stream_prepared(prepared, chosen)
    return prepared
