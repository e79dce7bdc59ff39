"""What the contestants have in common: what is asked, what they answer, what they are loaded with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from comp.errors import CompExportError
from run_files import RunFiles

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Answered:
    """One answer and its times; ``ttft_ms`` holds ``prepare_ms`` (image and text to numbers)."""

    prepare_ms: float
    ttft_ms: float
    decode_ms: float
    prompt_tokens: int
    token_ids: tuple[int, ...]

    @property
    def forward_ms(self) -> float:
        """From numbers to the first token: vision encoder, prefill, choice."""
        return self.ttft_ms - self.prepare_ms

    @property
    def tpot_ms(self) -> float:
        """Per token after the first."""
        return self.decode_ms / max(1, len(self.token_ids) - 1)


Answerer = Callable[[Image.Image], Answered]


@dataclass(frozen=True)
class Loaded:
    """A model in memory; ``notes`` say how it runs."""

    answer: Answerer
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchSettings:
    """What every contestant is asked; greedily, and past any end-of-sequence token."""

    prompt: str
    new_tokens: int
    device: Device
    threads: int


@dataclass
class Stage:
    """What contestants are loaded with; torch's two share their models."""

    files: RunFiles
    asked: BenchSettings
    models: Any = None  # ``TorchModels``, once one of torch's contestants was loaded


@contextmanager
def installed(how: str) -> Iterator[None]:
    """Inside the block a package that is missing is an error with its name and how to install it."""
    try:
        yield
    except ImportError as error:
        raise CompExportError(f"{error.name} is not installed: {how}") from error
