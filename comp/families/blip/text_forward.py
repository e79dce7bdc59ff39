"""Forward pass of BLIP's vision tower and text models on ``transformers``' modules.

Used for pruning and as the reference of exports. The vision tower is a pre-norm encoder
(``comp.families.encoder.forward``). The text model is post-norm, with cross-attention to one image, or to
each of two. It drops tokens right after the self-attention that ranks them, before cross-attention and FFN.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from comp.adapter import Observer
from comp.families.encoder.forward import (
    Encoded,
    EncoderOptions,
    Ranker,
    TowerBlock,
    drop_tokens,
    run_encoder,
    start_tokens,
    with_states,
)
from comp.importance.encoder_rankings import AttentionRecord
from comp.masks import BlockKey, Masks
from comp.tokens.attention import attend, causal_bias, presence_bias
from comp.tokens.dictionary import Responses
from comp.tokens.drop_rules import DropRule
from comp.tokens.state import TEXT, VISION, TokenState


class BlipVisionBlock(TowerBlock):
    """Block of the vision tower (see ``PreNormBlock``)."""

    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module, normed = self.layer.self_attn, self.layer.layer_norm1(states)
        mixed = module.qkv(normed).unflatten(-1, (3, -1, module.head_dim))  # [B, N, 3, H, hd]
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        return query, key, value

    def attention_output(self, mixed: Tensor) -> Tensor:
        return self.layer.self_attn.projection(mixed)


@dataclass(frozen=True)
class Seen:
    """Output of the vision tower.

    Attributes:
        states: image states ``[I, K, D]`` after the final norm.
        token_count: number of tokens of all images before any drop.
        encoded: the tokens that are left, before the final norm.
    """

    states: Tensor
    token_count: int
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
    alive = torch.ones(states.shape[:2], device=states.device)
    stays = torch.zeros(len(states), dtype=torch.long, device=states.device)
    blocks = [BlipVisionBlock(layer) for layer in vision.encoder.layers]
    tokens = start_tokens(states, VISION, alive, stays)
    encoded = run_encoder("vision", blocks, tokens, options, observer=observer)
    return Seen(vision.post_layernorm(encoded.tokens.states), alive.numel(), encoded)


@dataclass(frozen=True)
class TextOptions:
    """Options of a text model's forward pass.

    Attributes:
        masks: soft masks; ``None``: dense.
        rules: drop rules by number of blocks passed.
        calibrated: whether CIT is on.
        causal: whether the model is a decoder.
        first: number of this model's first block among the language blocks.
        responses: function of the tokens' responses to the entries of a dictionary.
    """

    masks: Masks | None = None
    rules: dict[int, DropRule] = field(default_factory=dict)
    calibrated: bool = True
    causal: bool = False
    first: int = 0
    responses: Responses | None = None


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
    options: TextOptions,
    observer: Observer | None = None,
) -> Encoded:
    """Run a text model on texts ``[B, L]``; the first token is never dropped.

    Args:
        text: the model, with ``embeddings`` and ``encoder.layer``.
        input_ids: ``[B, L]``.
        attention_mask: ``[B, L]``, 0 for padding.
        memories: one for each branch of cross-attention; empty skips cross-attention.
        options: of the forward pass.
        observer: sees the inputs of every output projection.
    """
    states = text.embeddings(input_ids=input_ids)
    stays = torch.zeros(len(states), dtype=torch.long, device=states.device)
    tokens = start_tokens(states, TEXT, attention_mask.to(states.dtype), stays)
    kept: dict[int, TokenState] = {}
    pending: tuple[int, Tensor, Tensor] | None = None
    for number, layer in enumerate(text.encoder.layer):
        rule = options.rules.get(number + 1)
        block = _TextBlock(layer, options.first + number, options, rule is not None, observer)
        states, record = block.attention(tokens)
        tokens = with_states(tokens, states)
        ranker = Ranker(options.calibrated, options.responses)
        importance = None if record is None else ranker.importance(rule, record, states)
        if observer is not None and record is not None and importance is not None:
            observer.heads(("language", block.number), record.mixed.flatten(2), importance)
        if observer is not None and importance is not None and pending is not None:
            observer.channels(("language", pending[0]), pending[1], importance)
        if rule is not None and record is not None and importance is not None:
            dropped, importance = drop_tokens(rule, record, tokens, importance)
            tokens = kept[number + 1] = dropped
        if memories:
            tokens = with_states(tokens, block.cross(tokens, memories, importance))
        states, hidden = block.feed_forward(tokens.states)
        tokens = with_states(tokens, states)
        if importance is not None:
            pending = options.first + number, hidden, importance
    if observer is not None and pending is not None:
        observer.channels(("language", pending[0]), pending[1], pending[2])
    return Encoded(tokens, kept)


def branches_of(layer: Any) -> list[Any]:
    """Cross-attention modules of a text layer: one, two, or none."""
    cross = getattr(layer, "crossattention", None)
    if cross is None:
        return []
    return [cross.self0, cross.self1] if hasattr(cross, "self1") else [cross.self]


def cross_key(block: int, branch: int, branches: int) -> BlockKey:
    """Key of a branch of cross-attention among the cross blocks."""
    return "cross", block * branches + branch


@dataclass(frozen=True)
class _TextBlock:
    layer: Any
    number: int
    options: TextOptions
    ranks: bool
    observer: Observer | None

    def attention(self, tokens: TokenState) -> tuple[Tensor, AttentionRecord | None]:
        """States after self-attention and its norm, and its record if tokens are ranked."""
        module = self.layer.attention.self
        query, key, value = (
            _heads(projection(tokens.states), module.attention_head_size)
            for projection in (module.query, module.key, module.value)
        )
        bias = presence_bias(tokens.alive)
        if self.options.causal:
            bias = bias + causal_bias(query.shape[2], key.shape[2], key.device)
        scale = module.attention_head_size**-0.5
        mixed = attend(query, key, value, bias, scale)
        mask = self._head_mask(("language", self.number), mixed)
        record = None
        if self.ranks or self.observer is not None:
            scores = (query.float() @ key.float().transpose(-1, -2)) * scale + bias
            record = AttentionRecord(scores, key, mixed, mask.float(), tokens, query)
        output = self.layer.attention.output
        projected = output.dense((mixed * mask[:, None]).flatten(2))
        return output.LayerNorm(projected + tokens.states), record

    def cross(
        self, tokens: TokenState, memories: Sequence[Memory], importance: Tensor | None
    ) -> Tensor:
        """States after cross-attention and its norm."""
        branches = branches_of(self.layer)
        outputs = []
        for branch, (module, memory) in enumerate(zip(branches, memories, strict=True)):
            size = module.attention_head_size
            query = _heads(module.query(tokens.states), size)
            key, value = (_heads(p(memory.states), size) for p in (module.key, module.value))
            mixed = attend(query, key, value, presence_bias(memory.alive), size**-0.5)
            place = cross_key(self.number, branch, len(branches))
            if self.observer is not None and importance is not None:
                self.observer.heads(place, mixed.flatten(2), importance)
            outputs.append((mixed * self._head_mask(place, mixed)[:, None]).flatten(2))
        output = self.layer.crossattention.output
        if len(branches) > 1:
            return output(*outputs, tokens.states)
        return output.LayerNorm(output.dense(outputs[0]) + tokens.states)

    def feed_forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States after the FFN and its norm, and the FFN's channels."""
        hidden = self.layer.intermediate(states)
        masked = hidden
        if self.options.masks is not None:
            mask = self.options.masks.channels["language", self.number]
            masked = hidden * mask.to(hidden.device, hidden.dtype)
        output = self.layer.output
        return output.LayerNorm(output.dense(masked) + states), hidden

    def _head_mask(self, key: BlockKey, mixed: Tensor) -> Tensor:
        """Soft mask of every head of ``mixed [B, N, H, hd]``."""
        if self.options.masks is None:
            return torch.ones(mixed.shape[2], device=mixed.device, dtype=mixed.dtype)
        return self.options.masks.heads[key].to(mixed.device, mixed.dtype)


def _heads(x: Tensor, size: int) -> Tensor:
    """``[B, N, H·hd] → [B, H, N, hd]``."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)
