"""Continuous batching: read prompts as they come, and run one token of all running answers at a time.

Orca's iteration-level scheduling (Yu et al., OSDI 2022): answers join and leave between two steps.
"""

from comp.errors import CompExportError
from serve.engines.llava import Engine, Prepared
from serve.scheduling.answering import Running
from serve.scheduling.requests import Request
from serve.scheduling.worker import Worker

PROMPTS_TOGETHER = 4  # more gain little, and the first of them waits longer


def _alike(first: Request, other: Request) -> bool:
    """Whether two prompts can be read together."""
    if not (isinstance(first.work, Prepared) and isinstance(other.work, Prepared)):
        return False
    same_factor = first.options.keep_factor == other.options.keep_factor
    return same_factor and first.work.size == other.work.size


class Scheduler(Worker):
    """Runs the answers of one LLaVA together.

    Args:
        engine: the artifact's engine.
        rows: most answers at the same time.
        places: most tokens of a prompt with its answer.
        queue: most requests that wait.
        together: most prompts that are read together, if they are alike. Several cannot begin with the caches
            of earlier prompts.

    Raises:
        CompExportError: the backend cannot run answers together.
    """

    def __init__(
        self,
        engine: Engine,
        rows: int,
        places: int,
        queue: int,
        together: int = PROMPTS_TOGETHER,
    ) -> None:
        super().__init__(queue)
        made = engine.rows(rows, places)
        if made is None:
            raise CompExportError(
                f"{engine.backend} on {engine.provider} runs one answer at a time: take an artifact of the "
                "onnxruntime flavour on a CPU, or OpenVINO"
            )
        self.engine, self.places, self._together = engine, places, together
        self._rows = made
        self._running: list[tuple[Request, Running]] = []  # by row
        self.start()

    @property
    def running(self) -> int:
        return len(self._running)

    def check(self, request: Request) -> None:
        """See ``Worker``: prompts that leave no place for an answer are refused."""
        assert isinstance(request.work, Prepared)
        length = request.work.prompt.length
        if length >= self.places:
            raise CompExportError(
                f"the prompt has {length} tokens, and a prompt with its answer may have {self.places}: "
                "shorten it, give fewer images, or start the server with a larger --max-model-len"
            )

    def work(self) -> None:
        """Read the next prompts, if rows are free, and run a step: answers go on while prompts come."""
        self._end_cancelled()
        free = self._rows.rows - len(self._running)
        if free:
            self._admit(self.take(min(free, self._together), _alike))
        self._step()

    def end_running(self, error: BaseException) -> None:
        """See ``Worker``."""
        for request, _ in self._running:
            request.end(error)
        self._leave(list(range(len(self._running))))

    def _admit(self, requests: list[Request]) -> None:
        """Read prompts together; if that fails, each by itself: an error is that of one request."""
        if not requests:
            return
        try:
            self._begin(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].end(error)
                return
            for request in requests:
                self._admit([request])

    def _begin(self, requests: list[Request]) -> None:
        prepared = [each.work for each in requests if isinstance(each.work, Prepared)]
        options = [each.options for each in requests]
        started, answers = self.engine.begin(prepared, options, self.places)
        try:
            for of, (request, answer) in enumerate(zip(requests, answers, strict=True)):
                try:
                    running = Running.start(answer, started, request.options, request.follow, of)
                except Exception as error:  # of this request alone
                    request.end(error)
                    continue
                if not running.is_finished:
                    self._rows.join(started.state, of)
                    self._running.append((request, running))
        finally:
            started.release(started.state)  # rows have their own caches

    def _step(self) -> None:
        """Run one token of every running answer."""
        if not self._running:
            return
        try:
            logits = self._rows.step([running.token for _, running in self._running])
        except Exception as error:  # the caches are in an unknown state
            self.end_running(error)
            return
        ended = []
        for row, (request, running) in enumerate(self._running):
            try:
                running.take(logits[row])
            except Exception as error:  # of this request alone
                request.end(error)
                ended.append(row)
            else:
                if running.is_finished:
                    ended.append(row)
        self._leave(ended)

    def _end_cancelled(self) -> None:
        ended = []
        for row, (request, _) in enumerate(self._running):
            reason = request.reason_to_end
            if reason is not None:
                request.end(reason)
                ended.append(row)
        self._leave(ended)

    def _leave(self, rows: list[int]) -> None:
        """Free rows; the last running row moves into each."""
        for row in sorted(rows, reverse=True):
            moved = self._rows.leave(row)
            self._running[row] = self._running[moved]
            self._running.pop()
