"""Results of a generation: events while it runs, and a record at the end."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comp.plan import Place

FinishReason: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Timings:
    """Milliseconds spent by the engine, without its caller's time between events.

    ``ttft_ms`` (time to first token) goes from the call to the first token and is the sum of
    preparing (reading and preprocessing the images, tokenising), the vision encoder, and the
    prefill (embedding, decoder, choice of the token). In a batch, times are those of the batch.
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
    """The kept tokens at each drop place, for display."""

    def seen(self, image: int = 0) -> list[tuple[str, NDArray[np.int64]]]:
        """Names of the places in order, and whether each of one image's tokens ``0..T-1`` was kept there."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        ...

    def lines(self) -> list[str]:
        """Lines for a terminal, one per place."""
        ...


@dataclass(frozen=True)
class SelectedTokens:
    """The selected tokens of each image, out of ``of`` tokens of its vision tower, ascending.

    They are the first of the image's tokens in the prompt; after them come the tokens into which all
    others were merged.
    """

    by_image: tuple[NDArray[np.int64], ...]
    of: int


@dataclass(frozen=True)
class KeptTokens:
    """The kept tokens of a LLaVA's prompt at each drop place (see ``Kept``).

    ``by_layer[m]`` are the positions ``0..N-1`` in the prompt that were kept after ``m`` decoder blocks,
    ascending. ``selected`` is set if the vision tower selects tokens.
    """

    by_layer: dict[int, NDArray[np.int64]]
    image_places: tuple[
        NDArray[np.int64], ...
    ]  # for each image, the prompt positions of its tokens
    length: int  # of the prompt
    selected: SelectedTokens | None = None

    def image_tokens(self, after_layer: int, image: int = 0) -> NDArray[np.int64]:
        """Whether each of one image's tokens ``0..T-1`` was kept; merged tokens are not counted."""
        stayed = np.flatnonzero(np.isin(self.image_places[image], self.by_layer[after_layer]))
        if self.selected is None:
            return stayed
        chosen = self.selected.by_image[image]
        return chosen[stayed[stayed < chosen.size]]

    def seen(self, image: int = 0) -> list[tuple[str, NDArray[np.int64]]]:
        first = [] if self.selected is None else [("vision tower", self.selected.by_image[image])]
        return first + [(f"layer {m}", self.image_tokens(m, image)) for m in sorted(self.by_layer)]

    def to_dict(self) -> dict[str, Any]:
        by_layer = {str(m): places.tolist() for m, places in self.by_layer.items()}
        if self.selected is None:
            return by_layer
        return {"vision tower": [each.tolist() for each in self.selected.by_image]} | by_layer

    def lines(self) -> list[str]:
        lines = []
        if self.selected is not None and self.image_places:
            kept, left = self.selected.by_image[0].size, self.image_places[0].size
            lines.append(
                f"after the vision tower: {kept} of {self.selected.of} tokens of an image kept, the "
                f"others merged into {left - kept}"
            )
        return lines + [
            f"after layer {m}: {places.size} of {self.length} tokens kept"
            for m, places in self.by_layer.items()
        ]


@dataclass(frozen=True)
class TowerKept:
    """The kept tokens in the towers of a CLIP or a BLIP (see ``Kept``).

    ``by_place`` has the kept tokens of each image, or of each text, ascending.
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
        lines = []
        for (part, layer), rows in sorted(self.by_place.items()):
            counts = sorted({tokens.size for tokens in rows})
            many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            lines.append(f"after {part} layer {layer}: {many} tokens kept")
        return lines


@dataclass(frozen=True)
class Generation:
    """One finished answer.

    ``token_ids`` are all generated tokens, without the end-of-sequence token; the tokens of a stop
    string are included, although ``text`` ends before it. ``cached_tokens`` of the prompt were
    not read again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    kept: Kept
    timings: Timings
    cached_tokens: int = 0

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
    """The prompt was processed: the kept tokens are known, the first token follows at once."""

    kept: Kept
    timings: Timings


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithm of the probability of a token, before temperature and top-p.

    ``top`` are the likeliest tokens and theirs, in descending order.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TokenText:
    """A token was generated; ``text`` is the text that can be shown now (may be empty)."""

    token_id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Finished:
    """The answer is complete; ``text`` is the text that was held back."""

    text: str
    generation: Generation


Event: TypeAlias = Prefilled | TokenText | Finished
