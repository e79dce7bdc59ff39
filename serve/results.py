"""What a generation gives back: events while it runs, a record when it is done."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FinishReason: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Timings:
    """Milliseconds spent by the engine itself, without its caller's time between events.

    ``ttft_ms`` (time to first token) goes from the call to the first token and holds the parts:
    preparing (reading and preprocessing the images, tokenising), the vision encoder, and the
    prefill (embedding, decoder, choice of the token). In a batch they are the times of the batch.
    """

    prepare_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float = 0.0
    decode_steps: int = 0

    @property
    def ttft_ms(self) -> float:
        return self.prepare_ms + self.vision_ms + self.prefill_ms

    @property
    def tpot_ms(self) -> float:
        """Time per output token after the first; 0 when there was only one."""
        return self.decode_ms / self.decode_steps if self.decode_steps else 0.0

    @property
    def total_ms(self) -> float:
        return self.ttft_ms + self.decode_ms


@dataclass(frozen=True)
class KeptTokens:
    """Which tokens of the prompt stayed at each place where tokens are dropped.

    ``by_layer[m]`` are the places ``0..N-1`` in the prompt that stayed after ``m`` decoder blocks,
    ascending.
    """

    by_layer: dict[int, NDArray[np.int64]]
    image_places: tuple[NDArray[np.int64], ...]  # for each image, the prompt places of its tokens

    def image_tokens(self, after_layer: int, image: int = 0) -> NDArray[np.int64]:
        """Which of one image's tokens ``0..T-1`` stayed."""
        return np.flatnonzero(np.isin(self.image_places[image], self.by_layer[after_layer]))


@dataclass(frozen=True)
class Generation:
    """One finished answer.

    ``token_ids`` are all tokens generated, the end-of-sequence token left out; with a stop string
    they also hold the tokens that spelled it, ``text`` does not.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    kept: KeptTokens
    timings: Timings

    @property
    def ttft_ms(self) -> float:
        return self.timings.ttft_ms

    @property
    def tpot_ms(self) -> float:
        return self.timings.tpot_ms

    @property
    def total_ms(self) -> float:
        return self.timings.total_ms


@dataclass(frozen=True)
class Prefilled:
    """The prompt is read: the kept tokens are known, the first token follows at once."""

    kept: KeptTokens
    timings: Timings


@dataclass(frozen=True)
class TokenText:
    """A token was generated; ``text`` is what can be shown because of it (may be empty)."""

    token_id: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The answer is complete; ``text`` is what was still held back."""

    text: str
    generation: Generation


Event: TypeAlias = "Prefilled | TokenText | Finished"
