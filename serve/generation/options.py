"""Options of a generation request, validated when they are created."""

import math
from dataclasses import dataclass

import numpy as np

from comp.errors import CompExportError

MOST_NEW_TOKENS = 2**31 - 1
LARGEST_SEED = 2**64 - 1
SHOWN = 40  # characters of a value in an error


@dataclass(frozen=True)
class GenerationOptions:
    """Options of generating an answer.

    Args:
        max_new_tokens: longest answer; also bounded by the model's positions.
        temperature: 0 takes the likeliest token (greedy); above 0 tokens are sampled.
        top_p: sample from the smallest set of tokens whose probability reaches this.
        seed: seed of sampling; the same seed gives the same answer.
        stop: the answer ends before the first of these strings.
        keep_factor: multiplies the keep ratios of a compressed artifact (above 1 keeps more tokens,
            below 1 fewer); needs an artifact of the ``onnxruntime`` flavour.
        ignore_eos: continue after an end-of-sequence token (for measurements).
        top_logprobs: report the log-probability of each token, and of this many likeliest ones; None: none.

    Raises:
        CompExportError: a value is out of range or of another type.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    keep_factor: float = 1.0
    ignore_eos: bool = False
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        new_tokens = _whole("max_new_tokens", self.max_new_tokens)
        if not 1 <= new_tokens <= MOST_NEW_TOKENS:
            raise CompExportError(
                f"max_new_tokens {_shown(new_tokens)}: ask for 1 to {MOST_NEW_TOKENS}"
            )
        if not 0 <= _number("temperature", self.temperature) <= 100:
            raise CompExportError(
                f"temperature {_shown(self.temperature)}: choose one from 0 (greedy) to 100"
            )
        if not 0 < _number("top_p", self.top_p) <= 1:
            raise CompExportError(f"top_p {_shown(self.top_p)}: choose one above 0 and at most 1")
        if not 0 <= _whole("seed", self.seed) <= LARGEST_SEED:
            raise CompExportError(f"seed {_shown(self.seed)}: choose one from 0 to {LARGEST_SEED}")
        if not 0 < _number("keep_factor", self.keep_factor) <= 1000:
            raise CompExportError(
                f"keep_factor {_shown(self.keep_factor)}: choose one above 0, at most 1000"
            )
        if not isinstance(self.stop, (tuple, list)) or not all(
            isinstance(word, str) and word for word in self.stop
        ):
            raise CompExportError("stop: give a sequence of strings, none of them empty")
        if (
            self.top_logprobs is not None
            and not 0 <= _whole("top_logprobs", self.top_logprobs) <= 100
        ):
            raise CompExportError(f"top_logprobs {_shown(self.top_logprobs)}: ask for 0 to 100")
        if not isinstance(self.ignore_eos, bool):
            raise CompExportError(
                f"ignore_eos {_shown(self.ignore_eos)}: choose true or false, as a boolean"
            )


def _whole(name: str, value: object) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise CompExportError(f"{name} {_shown(value)}: give a whole number")


def _number(name: str, value: object) -> float:
    """The value as a float; infinite if it exceeds all floats."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise CompExportError(f"{name} {_shown(value)}: give a number")


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return f"of more than {SHOWN} digits"  # Python does not write numbers of any length
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
