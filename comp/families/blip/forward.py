"""Run a BLIP's tower, text encoder or decoder, for adapters and for slim models.

The one place that assigns masks and drop rules of a ``Forwarding`` to these parts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from comp.adapter import Forwarding, Observer
from comp.families.blip.text_forward import Memory, Seen, read, see
from comp.families.encoder.adapter import options_of
from comp.families.encoder.forward import Encoded, EncoderOptions
from comp.plan import Part
from comp.tokens.dictionary import responses_of


def seen_by(
    model: Any, pixel_values: Tensor, forwarding: Forwarding, observer: Observer | None = None
) -> Seen:
    """Run the tower on ``pixel_values [I, C, S, S]``."""
    return see(model.vision_model, pixel_values, _options(model, forwarding, "vision"), observer)


def memories_of(seen: Seen, images: int) -> list[Memory]:
    """Memories of cross-attention for texts about ``images`` images each: one for each image."""
    whole = Memory.of_seen(seen)
    if images == 1:
        return [whole]
    states = whole.states.unflatten(0, (-1, images))
    alive = whole.alive.unflatten(0, (-1, images))
    return [Memory(states[:, which], alive[:, which]) for which in range(images)]


def encoded_by(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    memories: Sequence[Memory],
    forwarding: Forwarding,
    observer: Observer | None = None,
) -> Encoded:
    """Run the text encoder on texts ``[B, L]``; without memories, without cross-attention."""
    mask = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
    options = _options(model, forwarding, "language")
    return read(model.text_encoder, input_ids, mask, memories, options, observer)


def said_by(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    memory: Memory,
    forwarding: Forwarding,
    observer: Observer | None = None,
) -> Tensor:
    """Run the decoder and return logits ``[B, L, V]``; it drops nothing, its blocks follow the encoder's."""
    encoder = getattr(model, "text_encoder", None)
    first = 0 if encoder is None else len(encoder.encoder.layer)
    options = EncoderOptions(forwarding.masks, calibrated=forwarding.calibrated)
    bert, memories = model.text_decoder.bert, [memory]
    said = read(
        bert, input_ids, attention_mask, memories, options, observer, causal=True, first=first
    )
    return model.text_decoder.cls(said.tokens.states)


def _options(model: Any, forwarding: Forwarding, part: Part) -> EncoderOptions:
    return replace(options_of(forwarding, part), responses=responses_of(model, part))
