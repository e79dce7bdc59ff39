"""OpenVINO GenAI's continuous batching in a process of its own: requests go in, tokens come out.

``ContinuousBatchingPipeline.step`` and ``add_request`` keep Python's lock (GIL) while they compute, so that
HTTP in the same process would wait for every step.
"""

import asyncio
import itertools
import multiprocessing
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Engine:
    """Options of the pipeline.

    Attributes:
        model: directory that optimum-cli wrote.
        threads: ``INFERENCE_NUM_THREADS``.
        rows: answers that run together, at most.
        batched_tokens: tokens of a step, at most.
        cache_gb: size of all key/value caches in GB.
        prefix_caching: keep caches of earlier prompts.
        admit: requests that are added before a step, at most.
        properties: others of OpenVINO.
    """

    model: Path
    threads: int
    rows: int
    batched_tokens: int
    cache_gb: int
    prefix_caching: bool
    admit: int
    properties: dict[str, str]


@dataclass(frozen=True)
class Request:
    """A request on its way to the pipeline; pictures are ``[H, W, 3]`` of bytes."""

    number: int
    prompt: str
    pictures: list[Any]
    max_tokens: int
    ignore_eos: bool


@dataclass(frozen=True)
class Tokens:
    """New tokens of an answer; ``end`` is its reason to end, ``error`` why there is no answer."""

    number: int
    ids: list[int]
    end: str | None = None
    prompt_tokens: int = 0
    error: str | None = None


class Loop:
    """The loop of the pipeline's process: take requests, step, send tokens."""

    def __init__(self, engine: Engine, pipe: Connection) -> None:
        import openvino
        import openvino_genai

        self._engine, self._pipe = engine, pipe
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        config = openvino_genai.SchedulerConfig()
        config.max_num_seqs, config.cache_size = engine.rows, engine.cache_gb
        config.max_num_batched_tokens = engine.batched_tokens
        config.enable_prefix_caching = engine.prefix_caching
        properties = {"INFERENCE_NUM_THREADS": engine.threads, **engine.properties}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(engine.model), config, "CPU", properties, {}, properties
        )
        self._defaults = self._pipeline.get_config()
        reasons = openvino_genai.GenerationFinishReason
        self._ends = {reasons.STOP: "stop", reasons.LENGTH: "length"}
        self._waiting: list[Request] = []
        self._handles: dict[int, Any] = {}
        pipe.send(config.to_string())

    def run(self) -> None:
        """Run until the pipe closes."""
        try:
            while True:
                self._receive()
                sent = self._admit()
                if self._pipeline.has_non_finished_requests():
                    self._pipeline.step()
                for number, handle in list(self._handles.items()):
                    tokens = self._read(number, handle)
                    if tokens.ids or tokens.end or tokens.error:
                        sent.append(tokens)
                    if tokens.end or tokens.error:
                        del self._handles[number]
                if sent:
                    self._pipe.send(sent)
        except EOFError:
            return

    def _receive(self) -> None:
        """Take what was sent; wait if there is nothing to do."""
        while self._pipe.poll(0) or not (self._handles or self._waiting):
            said: Request | int = self._pipe.recv()
            if isinstance(said, Request):
                self._waiting.append(said)
            elif said in self._handles:  # its client has left
                self._handles.pop(said).cancel()
            else:
                self._waiting = [each for each in self._waiting if each.number != said]

    def _admit(self) -> list[Tokens]:
        """Add waiting requests, which encodes their pictures; return the errors."""
        errors = []
        for _ in range(min(self._engine.admit, len(self._waiting))):
            request = self._waiting.pop(0)
            try:
                self._handles[request.number] = self._add(request)
            except RuntimeError as error:
                errors.append(Tokens(request.number, [], error=str(error)))
        return errors

    def _add(self, request: Request) -> Any:
        options = self._genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos = request.max_tokens, request.ignore_eos
        options.do_sample, options.apply_chat_template = False, False
        options.eos_token_id = self._defaults.eos_token_id
        options.stop_token_ids = self._defaults.stop_token_ids
        pictures = [self._tensor(each) for each in request.pictures]
        return self._pipeline.add_request(
            request.number, request.prompt, images=pictures, generation_config=options
        )

    def _read(self, number: int, handle: Any) -> Tokens:
        """The tokens of the last step of a request."""
        ids, end = [], None
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
                end = self._ends.get(output.finish_reason)
        if handle.get_status() == self._genai.GenerationStatus.IGNORED:
            return Tokens(number, [], error="the prompt does not fit into the cache")
        count = handle.get_perf_metrics().get_num_input_tokens() if end else 0
        return Tokens(number, ids, end, count)


def run_loop(engine: Engine, pipe: Connection) -> None:
    """Load the model and answer requests: the whole work of the process."""
    Loop(engine, pipe).run()


@dataclass
class Pipeline:
    """The pipeline's process, as the server sees it; ``scheduler`` describes its configuration."""

    pipe: Connection
    scheduler: str
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    queues: dict[int, "asyncio.Queue[Tokens]"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def start(cls, engine: Engine) -> "Pipeline":
        """Start the process and wait until the model is loaded."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        context.Process(target=run_loop, args=(engine, there), daemon=True).start()
        there.close()
        try:
            return cls(here, here.recv())
        except EOFError:
            raise SystemExit(f"the pipeline did not load {engine.model}") from None

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand tokens to their requests, in a thread; a pipeline that ends ends all of them."""
        try:
            while True:
                loop.call_soon_threadsafe(self._hand_out, self.pipe.recv())
        except (EOFError, OSError):
            lost = [Tokens(number, [], error="the pipeline ended") for number in list(self.queues)]
            loop.call_soon_threadsafe(self._hand_out, lost)

    def _hand_out(self, many: list[Tokens]) -> None:
        for tokens in many:
            if tokens.number in self.queues:
                self.queues[tokens.number].put_nowait(tokens)

    def _send(self, said: Request | int) -> None:
        with self.lock:
            self.pipe.send(said)

    async def answer(
        self, prompt: str, pictures: list[Any], max_tokens: int, ignore_eos: bool
    ) -> AsyncIterator[Tokens]:
        """Yield tokens until the end; cancel if the caller goes."""
        number = next(self.numbers)
        queue = self.queues[number] = asyncio.Queue()
        ended = False
        try:
            request = Request(number, prompt, pictures, max_tokens, ignore_eos)
            await asyncio.to_thread(self._send, request)
            while not ended:
                tokens = await queue.get()
                ended = bool(tokens.end or tokens.error)
                yield tokens
        finally:
            del self.queues[number]
            if not ended:
                self._send(number)
