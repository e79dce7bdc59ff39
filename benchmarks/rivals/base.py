"""The interface of contestants: the question, their answers, and the files they load."""

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
    """One answer and its times; ``ttft_ms`` includes ``prepare_ms`` (processing of image and text)."""

    prepare_ms: float
    ttft_ms: float
    decode_ms: float
    prompt_tokens: int
    token_ids: tuple[int, ...]

    @property
    def forward_ms(self) -> float:
        """Time from processed inputs to the first token: vision encoder, prefill, choice of the token."""
        return self.ttft_ms - self.prepare_ms

    @property
    def tpot_ms(self) -> float:
        """Time per token after the first."""
        return self.decode_ms / max(1, len(self.token_ids) - 1)


Answerer = Callable[[Image.Image], Answered]


@dataclass(frozen=True)
class Loaded:
    """A loaded model; ``notes`` describe its execution."""

    answer: Answerer
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchSettings:
    """The settings of every contestant's answer; greedy, ignoring end-of-sequence tokens."""

    prompt: str
    new_tokens: int
    device: Device
    threads: int


@dataclass
class Stage:
    """The inputs of loading a contestant; torch's two contestants share their models."""

    files: RunFiles
    settings: BenchSettings
    models: Any = None  # ``TorchModels``, after one of torch's contestants was loaded


@contextmanager
def installed(command: str) -> Iterator[None]:
    """Turn an ImportError in the block into an error with the command that installs the package."""
    try:
        yield
    except ImportError as error:
        raise CompExportError(f"{error.name} is not installed: {command}") from error
