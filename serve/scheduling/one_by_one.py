"""Answers one after another, for engines that keep no rows: BLIP, TensorRT, GPUs."""

from serve.engines.llava import Prepared
from serve.scheduling.requests import Request
from serve.scheduling.worker import Worker


class OneByOne(Worker):
    """Streams the answer of each request from its engine."""

    def __init__(self, queue: int) -> None:
        super().__init__(queue)
        self._running: Request | None = None
        self.start()

    @property
    def running(self) -> int:
        return 0 if self._running is None else 1

    def check(self, request: Request) -> None:
        """See ``Worker``: the engine refuses requests when they are prepared."""

    def work(self) -> None:
        """Answer the next request to its end."""
        for request in self.take():
            self._running = request
            try:
                self._answer(request)
            except Exception as error:  # of this request alone
                request.end(error)
            finally:
                self._running = None

    def end_running(self, error: BaseException) -> None:
        """See ``Worker``: nothing runs between two pieces of work."""

    def stop(self) -> None:
        """See ``Worker``: the answer that runs ends after its present token."""
        running = self._running
        if running is not None:
            running.cancel()
        super().stop()

    @staticmethod
    def _answer(request: Request) -> None:
        assert not isinstance(request.work, Prepared)
        for event in request.work(request.options):
            reason = request.reason_to_end
            if reason is not None:
                raise reason
            request.follow(event)
