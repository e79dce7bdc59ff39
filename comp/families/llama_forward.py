"""A Llama decoder as CoMP needs it: soft masks, token dropping, a cache per layer, and observers.

Works on the modules of ``transformers`` (dense, with cut projections, or with LoRA adapters) without
patching them: it calls their submodules. One implementation serves pruning, recovery, the masked and
the slim model, so that they can only differ in their weights.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from comp.families.attention import NEVER, attend, causal_bias, presence_bias
from comp.families.observe import Observer
from comp.masks import Masks
from comp.tokens import ANSWER, DropRule, DropRules, TokenState, received_attention


@dataclass
class LayerCache:
    """Keys and values ``[B, Hkv, M, hd]`` and the presence ``[B, M]`` of the tokens of one layer."""

    key: Tensor
    value: Tensor
    alive: Tensor


@dataclass
class DecoderCache:
    """One cache a layer, each of its own length; ``seen`` counts tokens of the whole sequence."""

    layers: dict[int, LayerCache] = field(default_factory=dict)
    seen: int = 0

    def extend(self, layer: int, key: Tensor, value: Tensor, alive: Tensor) -> LayerCache:
        """Append to a layer and return all of it."""
        if layer in self.layers:
            old = self.layers[layer]
            key, value = torch.cat([old.key, key], 2), torch.cat([old.value, value], 2)
            alive = torch.cat([old.alive, alive], 1)
        self.layers[layer] = LayerCache(key, value, alive)
        return self.layers[layer]


@dataclass(frozen=True)
class Kept:
    """What stayed at a drop place: original indices ``[B, K]`` with presence, and kind ``[B, K]``."""

    index: Tensor
    alive: Tensor
    kind: Tensor


@dataclass(frozen=True)
class DecoderOptions:
    """How to run: masks (none: whole), drop rules by place, CIT on or off."""

    masks: Masks | None = None
    rules: dict[int, DropRule] = field(default_factory=dict)  # by blocks passed
    calibrated: bool = True


def rules_by_layer(rules: DropRules) -> dict[int, DropRule]:
    """Rules of the decoder's places, by the blocks passed before."""
    return {layer: rule for (_, layer), rule in rules.items()}


def run_decoder(
    language: Any,
    tokens: TokenState,
    options: DecoderOptions,
    cache: DecoderCache | None = None,
    observer: Observer | None = None,
) -> tuple[TokenState, dict[int, Kept]]:
    """Run every block and the final norm.

    A prefill (empty cache or none) drops tokens where ``options.rules`` says so; later calls with the
    same cache are decode steps of answer tokens, which are never dropped.

    Returns:
        The tokens that reached the end (with normalised states) and what stayed at each place.
    """
    decoding = cache is not None and cache.seen > 0
    if cache is not None:
        cache.seen += tokens.states.shape[1]
    kept: dict[int, Kept] = {}
    rotary = _rotary(language, tokens)
    pending: _PendingChannels | None = None
    for number, layer in enumerate(language.layers):
        tokens = _to_device(tokens, layer)
        rotary = tuple(part.to(tokens.states.device) for part in rotary)
        ranks = observer is not None or (number + 1 in options.rules and not decoding)
        block = _Block(layer, number, options, ranks)
        states, importance, mixed = block.attention(tokens, rotary, cache)
        if observer is not None and importance is not None:
            observer.heads(("language", number), mixed, importance)
            if pending is not None:
                pending.tell(observer, importance)
        states, hidden = block.feed_forward(states)
        tokens = TokenState(
            states, tokens.position, tokens.kind, tokens.alive, tokens.index, tokens.query
        )
        if observer is not None and importance is not None:
            pending = _PendingChannels(number, hidden, importance, None)
        rule = options.rules.get(number + 1)
        if rule is not None and importance is not None and not decoding:
            alive = rule.keep(importance, tokens.kind, tokens.alive, tokens.query)
            tokens, taken = tokens.drop(alive)
            rotary = tuple(part.gather(1, _last(taken, part)) for part in rotary)
            kept[number + 1] = Kept(tokens.index, tokens.alive, tokens.kind)
            if pending is not None:
                pending = _PendingChannels(number, hidden, pending.own, taken)
    if observer is not None and pending is not None:
        pending.tell(observer, None)
    states = language.norm(tokens.states.to(_device(language.norm)))
    done = TokenState(
        states, tokens.position, tokens.kind, tokens.alive, tokens.index, tokens.query
    )
    return done, kept


@dataclass(frozen=True)
class _PendingChannels:
    """An FFN's activations waiting for the *next* layer's token importance (method.md, CIP)."""

    number: int
    hidden: Tensor
    own: Tensor
    taken: Tensor | None

    def tell(self, observer: Observer, following: Tensor | None) -> None:
        importance = self.own
        if following is not None and self.taken is not None:
            importance = torch.zeros_like(self.own).scatter(1, self.taken, following)
        elif following is not None:
            importance = following
        observer.channels(("language", self.number), self.hidden, importance)


@dataclass(frozen=True)
class _Block:
    layer: Any
    number: int
    options: DecoderOptions
    ranks: bool

    def attention(
        self, tokens: TokenState, rotary: tuple[Tensor, ...], cache: DecoderCache | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """States after attention, token importance ``[B, N]`` if asked, and the heads' outputs."""
        module = self.layer.self_attn
        batch, count, _ = tokens.states.shape
        normed = self.layer.input_layernorm(tokens.states)
        shape = (batch, count, -1, module.head_dim)
        query, key, value = (
            projection(normed).view(shape).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        query, key = query.to(value.dtype), key.to(value.dtype)
        alive = tokens.alive
        if cache is not None:
            whole = cache.extend(self.number, key, value, alive)
            key, value, alive = whole.key, whole.value, whole.alive
        bias = presence_bias(alive)
        if count > 1:
            bias = bias + causal_bias(count, key.shape[2], key.device)
        mixed = attend(query, key, value, bias, module.scaling)
        head_mask = self._head_mask(query.shape[1], key.shape[1], mixed)
        importance = None
        if self.ranks:
            scores = _ranking_scores(query, key, tokens, alive, module.scaling)
            importance = received_attention(scores, head_mask.float(), self.options.calibrated)
            importance = importance * (tokens.kind != ANSWER)
        flat = mixed.reshape(batch, count, -1)
        if self.options.masks is not None:
            mixed = mixed * head_mask[:, None]
        projected = module.o_proj(mixed.reshape(batch, count, -1))
        return tokens.states + projected, importance, flat

    def feed_forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        module = self.layer.mlp
        normed = self.layer.post_attention_layernorm(states)
        hidden = module.act_fn(module.gate_proj(normed)) * module.up_proj(normed)
        masked = hidden
        if self.options.masks is not None:
            mask = self.options.masks.channels["language", self.number]
            masked = hidden * mask.to(hidden.device, hidden.dtype)
        return states + module.down_proj(masked), hidden

    def _head_mask(self, heads: int, groups: int, like: Tensor) -> Tensor:
        """Soft mask of every query head, ``[H]``."""
        if self.options.masks is None:
            return torch.ones(heads, device=like.device, dtype=like.dtype)
        mask = self.options.masks.heads["language", self.number].to(like.device, like.dtype)
        return mask.repeat_interleave(heads // groups)


def _ranking_scores(
    query: Tensor, key: Tensor, tokens: TokenState, alive: Tensor, scale: float
) -> Tensor:
    """Logits of the last instruction token's query against the keys it sees, ``[B, H, N]``."""
    row = tokens.query[:, None, None, None].expand(-1, query.shape[1], 1, query.shape[3])
    last = query.gather(2, row)[:, :, 0]  # [B, H, hd]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("bhd,bhmd->bhm", last.float(), key.float()) * scale
    later = torch.arange(key.shape[2], device=key.device)[None] > tokens.query[:, None]
    hidden = later | (alive <= 0)
    return (scores + presence_bias(alive)[:, 0]).masked_fill(hidden[:, None], NEVER)


def _rotary(language: Any, tokens: TokenState) -> tuple[Tensor, ...]:
    return language.rotary_emb(tokens.states.float(), position_ids=tokens.position)


def _last(taken: Tensor, part: Tensor) -> Tensor:
    """Gather indices spread over the last dimension; a table of one row serves the whole batch."""
    return taken[..., None].expand(-1, -1, part.shape[-1])


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _to_device(tokens: TokenState, layer: nn.Module) -> TokenState:
    """The tokens on the layer's device: layers may be spread over several GPUs."""
    device = _device(layer)
    if tokens.states.device == device:
        return tokens
    return TokenState(
        *(
            getattr(tokens, name).to(device)
            for name in ("states", "position", "kind", "alive", "index", "query")
        )
    )
