"""Forward pass of BLIP's vision tower and text models on ``transformers``' modules.

Used for pruning and as the reference of exports. The vision tower is pre-norm. The text model is post-norm,
with cross-attention to one image, or to each of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comp.adapter import Observer
from comp.checkpoints.shapes import cross_key
from comp.families.encoder.forward import (
    Encoded,
    EncoderBlock,
    EncoderOptions,
    TowerBlock,
    run_encoder,
    start_tokens,
    with_states,
)
from comp.families.surgery import set_in, set_out
from comp.tokens.attention import attend, presence_bias
from comp.tokens.state import TEXT, VISION, TokenState


class BlipVisionBlock(TowerBlock):
    """Block of the vision tower."""

    @property
    def output(self) -> nn.Linear:
        return self.layer.self_attn.projection

    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module, normed = self.layer.self_attn, self.layer.layer_norm1(states)
        mixed = module.qkv(normed).unflatten(-1, (3, -1, module.head_dim))  # [B, N, 3, H, hd]
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        return query, key, value

    def resize_attention(self, width: int) -> None:
        set_out(self.layer.self_attn, ("qkv",), 3 * width)
        set_in(self.layer.self_attn, "projection", width)


def vision_blocks(vision: Any) -> list[BlipVisionBlock]:
    """Blocks of a BLIP vision tower."""
    return [BlipVisionBlock(layer) for layer in vision.encoder.layers]


@dataclass(frozen=True)
class Seen:
    """Output of the vision tower.

    Attributes:
        states: image states ``[I, K, D]`` after the final norm.
        encoded: the tokens that are left, before the final norm.
    """

    states: Tensor
    encoded: Encoded

    @property
    def tokens(self) -> TokenState:
        """The tokens that are left, with the states after the final norm."""
        return with_states(self.encoded.tokens, self.states)


def see(
    vision: Any, pixel_values: Tensor, options: EncoderOptions, observer: Observer | None = None
) -> Seen:
    """Run a BLIP vision tower on ``pixel_values [I, C, S, S]``; [CLS], token 0, is never dropped."""
    states = vision.embeddings(pixel_values)
    tokens, blocks = start_tokens(states, VISION), vision_blocks(vision)
    encoded = run_encoder("vision", blocks, tokens, options, observer=observer)
    return Seen(vision.post_layernorm(encoded.tokens.states), encoded)


@dataclass(frozen=True)
class Memory:
    """Keys and values of cross-attention: states ``[B, M, D]`` and their presence ``[B, M]``."""

    states: Tensor
    alive: Tensor

    @classmethod
    def of_image(cls, states: Tensor) -> "Memory":
        """Memory of image states that are all present."""
        return cls(states, torch.ones(states.shape[:2], device=states.device))

    @classmethod
    def of_seen(cls, seen: Seen) -> "Memory":
        """Memory of the tokens that a tower left; rows may have kept different numbers."""
        return cls(seen.states, seen.encoded.tokens.alive)

    @classmethod
    def of_text(cls, read: Encoded) -> "Memory":
        """Memory of the tokens that a text encoder left, without padding."""
        return cls(read.tokens.states, read.tokens.alive)


def read(
    text: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    memories: Sequence[Memory],
    options: EncoderOptions,
    observer: Observer | None = None,
    causal: bool = False,
    first: int = 0,
) -> Encoded:
    """Run a text model on texts ``[B, L]``; the first token is never dropped.

    Args:
        text: the model, with ``embeddings`` and ``encoder.layer``.
        input_ids: ``[B, L]``.
        attention_mask: ``[B, L]``, 0 for padding.
        memories: one for each branch of cross-attention; empty skips cross-attention.
        options: options of the forward pass.
        observer: sees the inputs of every output projection.
        causal: whether the model is a decoder.
        first: number of this model's first block among the language blocks.
    """
    states = text.embeddings(input_ids=input_ids)
    tokens = start_tokens(states, TEXT, attention_mask.to(states.dtype))
    blocks = [
        _TextBlock(layer, number, memories, options, observer)
        for number, layer in enumerate(text.encoder.layer, start=first)
    ]
    return run_encoder("language", blocks, tokens, options, causal, observer, first)


def branches_of(layer: Any) -> list[Any]:
    """Cross-attention modules of a text layer: one, two, or none."""
    cross = getattr(layer, "crossattention", None)
    if cross is None:
        return []
    return [cross.self0, cross.self1] if hasattr(cross, "self1") else [cross.self]


@dataclass(frozen=True)
class _TextBlock(EncoderBlock):
    """A post-norm block with cross-attention to ``memories``."""

    number: int
    memories: Sequence[Memory]
    options: EncoderOptions
    observer: Observer | None

    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module = self.layer.attention.self
        query, key, value = (
            _heads(projection(states), module.attention_head_size)
            for projection in (module.query, module.key, module.value)
        )
        return query, key, value

    def add_attention(self, states: Tensor, mixed: Tensor) -> Tensor:
        output = self.layer.attention.output
        return output.LayerNorm(output.dense(mixed) + states)

    def cross_attend(self, tokens: TokenState, importance: Tensor | None) -> Tensor:
        if not self.memories:
            return tokens.states
        branches = branches_of(self.layer)
        outputs = []
        for branch, (module, memory) in enumerate(zip(branches, self.memories, strict=True)):
            size = module.attention_head_size
            query = _heads(module.query(tokens.states), size)
            key, value = (_heads(p(memory.states), size) for p in (module.key, module.value))
            mixed = attend(query, key, value, presence_bias(memory.alive), size**-0.5)
            place = cross_key(self.number, branch, len(branches))
            if self.observer is not None and importance is not None:
                self.observer.heads(place, mixed.flatten(2), importance)
            outputs.append((mixed * self.options.head_mask(place, mixed)[:, None]).flatten(2))
        output = self.layer.crossattention.output
        if len(branches) > 1:
            return output(*outputs, tokens.states)
        return output.LayerNorm(output.dense(outputs[0]) + tokens.states)

    def hidden(self, states: Tensor) -> Tensor:
        return self.layer.intermediate(states)

    def add_ffn(self, states: Tensor, hidden: Tensor) -> Tensor:
        output = self.layer.output
        return output.LayerNorm(output.dense(hidden) + states)


def _heads(x: Tensor, size: int) -> Tensor:
    """``[B, N, H·hd] → [B, H, N, hd]``."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)
