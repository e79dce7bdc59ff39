"""What a generation gives back: events while it runs, a record when it is done."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comp.plan import Place

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


class Kept(Protocol):
    """Which tokens stayed at each place where some are dropped, for people."""

    def seen(self, image: int = 0) -> list[tuple[str, NDArray[np.int64]]]:
        """By place, in order: its name, and which of one image's tokens ``0..T-1`` stayed."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ...

    def lines(self) -> list[str]:
        """For a terminal, one line a place."""
        ...


@dataclass(frozen=True)
class KeptTokens:
    """Which tokens of a LLaVA's prompt stayed at each place where tokens are dropped (see ``Kept``).

    ``by_layer[m]`` are the places ``0..N-1`` in the prompt that stayed after ``m`` decoder blocks,
    ascending.
    """

    by_layer: dict[int, NDArray[np.int64]]
    image_places: tuple[NDArray[np.int64], ...]  # for each image, the prompt places of its tokens
    length: int  # of the prompt

    def image_tokens(self, after_layer: int, image: int = 0) -> NDArray[np.int64]:
        """Which of one image's tokens ``0..T-1`` stayed."""
        return np.flatnonzero(np.isin(self.image_places[image], self.by_layer[after_layer]))

    def seen(self, image: int = 0) -> list[tuple[str, NDArray[np.int64]]]:
        return [(f"layer {m}", self.image_tokens(m, image)) for m in sorted(self.by_layer)]

    def to_dict(self) -> dict[str, Any]:
        return {str(m): places.tolist() for m, places in self.by_layer.items()}

    def lines(self) -> list[str]:
        return [
            f"after layer {m}: {places.size} of {self.length} tokens kept"
            for m, places in self.by_layer.items()
        ]


@dataclass(frozen=True)
class TowerKept:
    """Which tokens stayed in the towers of a CLIP or a BLIP (see ``Kept``).

    ``by_place`` has, of each image, or of each text, the tokens that stayed there, ascending.
    """

    by_place: dict[Place, list[NDArray[np.int64]]]

    def seen(self, image: int = 0) -> list[tuple[str, NDArray[np.int64]]]:
        return [
            (f"layer {layer}", rows[image])
            for (part, layer), rows in sorted(self.by_place.items())
            if part == "vision"
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            f"{part} {layer}": [tokens.tolist() for tokens in rows]
            for (part, layer), rows in self.by_place.items()
        }

    def lines(self) -> list[str]:
        found = []
        for (part, layer), rows in sorted(self.by_place.items()):
            counts = sorted({tokens.size for tokens in rows})
            many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            found.append(f"after {part} layer {layer}: {many} tokens kept")
        return found


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
    kept: Kept
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

    kept: Kept
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
