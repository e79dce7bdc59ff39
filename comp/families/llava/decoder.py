"""Forward pass of a Llama decoder with soft masks, token dropping, a cache per layer, and observers.

It calls the submodules of ``transformers``' modules (dense, cut, or with LoRA) without patching them.
Pruning, recovery, the masked model and the slim model share this implementation, so that they differ only
in weights.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from comp.adapter import Observer
from comp.importance.decoder_rankings import diversity, mean_attention
from comp.importance.parameters import PendingChannels
from comp.importance.tokens import received_attention
from comp.masks import Masks
from comp.plan import Ranking
from comp.tokens.attention import NEVER, attend, causal_bias, presence_bias
from comp.tokens.drop_rules import DropRule, DropRules
from comp.tokens.state import ANSWER, TokenState


@dataclass
class LayerCache:
    """Keys and values ``[B, Hkv, M, hd]`` and the presence ``[B, M]`` of the tokens of one layer."""

    key: Tensor
    value: Tensor
    alive: Tensor


@dataclass
class DecoderCache:
    """One cache for each layer, of different lengths; ``seen`` counts tokens of the whole sequence."""

    layers: dict[int, LayerCache] = field(default_factory=dict)
    seen: int = 0

    def extend(self, layer: int, key: Tensor, value: Tensor, alive: Tensor) -> LayerCache:
        """Append to a layer's cache, and return all of it."""
        if layer in self.layers:
            old = self.layers[layer]
            key, value = torch.cat([old.key, key], 2), torch.cat([old.value, value], 2)
            alive = torch.cat([old.alive, alive], 1)
        self.layers[layer] = LayerCache(key, value, alive)
        return self.layers[layer]


@dataclass(frozen=True)
class Kept:
    """Tokens that stayed at a drop place: original indices, presence and kind, each ``[B, K]``.

    ``margin [B]`` is that of the pivots in ``diversity``; ``None`` in other rankings.
    """

    index: Tensor
    alive: Tensor
    kind: Tensor
    margin: Tensor | None = None


@dataclass(frozen=True)
class DecoderOptions:
    """Options of a forward pass: masks (``None``: dense), drop rules by blocks passed, CIT on or off."""

    masks: Masks | None = None
    rules: dict[int, DropRule] = field(default_factory=dict)  # by blocks passed
    calibrated: bool = True


def rules_by_layer(rules: DropRules) -> dict[int, DropRule]:
    """Rules of the decoder's places, by number of blocks passed."""
    return {layer: rule for (_, layer), rule in rules.items()}


def run_decoder(
    language: Any,
    tokens: TokenState,
    options: DecoderOptions,
    cache: DecoderCache | None = None,
    observer: Observer | None = None,
    until: int | None = None,
) -> tuple[TokenState, dict[int, Kept]]:
    """Run every block, or those before the drop place ``until``, and the final norm.

    A prefill (no cache, or an empty one) drops tokens by ``options.rules``. Later calls with the same cache
    are decode steps of answer tokens, which are never dropped.

    Returns:
        The tokens that reached the end, with normalised states, and those that stayed at each place.
    """
    decoding = cache is not None and cache.seen > 0
    if cache is not None:
        cache.seen += tokens.states.shape[1]
    kept: dict[int, Kept] = {}
    rotary = _rotary(language, tokens)
    pending: PendingChannels | None = None
    for number, layer in enumerate(language.layers[:until]):
        tokens = _to_device(tokens, layer)
        rotary = tuple(part.to(tokens.states.device) for part in rotary)
        rule = None if decoding else options.rules.get(number + 1)
        block = _Block(layer, number, options)
        states, mixed, record = block.attention(tokens, rotary, cache)
        states, hidden = block.feed_forward(states)
        tokens = replace(tokens, states=states)
        if observer is not None:
            received = record.received(tokens)
            observer.heads(("language", number), mixed, received)
            if pending is not None:
                pending.tell(observer, received)
            pending = PendingChannels(("language", number), hidden, received)
        if rule is not None:
            importance, margin = record.importance(rule.ranking, tokens, rotary, language.layers)
            alive = rule.keep(importance, tokens.kind, tokens.alive, tokens.query)
            tokens, taken = tokens.drop(alive)
            rotary = tuple(part.gather(1, _last(taken, part)) for part in rotary)
            kept[number + 1] = Kept(tokens.index, tokens.alive, tokens.kind, margin)
            if pending is not None:
                pending = replace(pending, taken=taken)
    if observer is not None and pending is not None:
        pending.tell(observer, None)
    states = language.norm(tokens.states.to(_device(language.norm)))
    return replace(tokens, states=states), kept


@dataclass(frozen=True)
class _Block:
    layer: Any
    number: int
    options: DecoderOptions

    def attention(
        self, tokens: TokenState, rotary: tuple[Tensor, ...], cache: DecoderCache | None
    ) -> tuple[Tensor, Tensor, "_AttentionRecord"]:
        """States after attention, the heads' outputs ``[B, N, H·hd]``, and the record of the attention."""
        module = self.layer.self_attn
        batch, count, _ = tokens.states.shape
        normed = self.layer.input_layernorm(tokens.states)
        value = module.v_proj(normed).view(batch, count, -1, module.head_dim).transpose(1, 2)
        query, key = self.rotated(normed, rotary)
        alive = tokens.alive
        if cache is not None:
            whole = cache.extend(self.number, key, value, alive)
            key, value, alive = whole.key, whole.value, whole.alive
        bias = presence_bias(alive)
        if count > 1:
            bias = bias + causal_bias(count, key.shape[2], key.device)
        mixed = attend(query, key, value, bias, module.scaling)
        head_mask = self.head_mask(query, key)
        record = _AttentionRecord(self, query, key, alive, head_mask)
        flat = mixed.reshape(batch, count, -1)
        if self.options.masks is not None:
            mixed = mixed * head_mask.to(mixed.dtype)[:, None]
        projected = module.o_proj(mixed.reshape(batch, count, -1))
        return tokens.states + projected, flat, record

    def rotated(self, normed: Tensor, rotary: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Query ``[B, H, N, hd]`` and key ``[B, Hkv, N, hd]`` of normalised states."""
        module = self.layer.self_attn
        shape = (*normed.shape[:2], -1, module.head_dim)
        query, key = module.q_proj(normed).view(shape), module.k_proj(normed).view(shape)
        if hasattr(module, "q_norm"):  # Qwen3
            query, key = module.q_norm(query), module.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        turned = apply_rotary_pos_emb(query, key, *rotary)
        return turned[0].to(query.dtype), turned[1].to(key.dtype)

    def feed_forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        module = self.layer.mlp
        normed = self.layer.post_attention_layernorm(states)
        hidden = module.act_fn(module.gate_proj(normed)) * module.up_proj(normed)
        masked = hidden
        if self.options.masks is not None:
            mask = self.options.masks.channels["language", self.number]
            masked = hidden * mask.to(hidden.device, hidden.dtype)
        return states + module.down_proj(masked), hidden

    def head_mask(self, query: Tensor, key: Tensor) -> Tensor:
        """Soft mask of every query head, ``[H]`` float32."""
        heads, groups = query.shape[1], key.shape[1]
        if self.options.masks is None:
            return torch.ones(heads, device=query.device)
        mask = self.options.masks.heads["language", self.number].to(query.device)
        return mask.float().repeat_interleave(heads // groups)


@dataclass(frozen=True)
class _AttentionRecord:
    """Rotated ``query [B, H, N, hd]`` and ``key [B, Hkv, N, hd]`` of a block, to rank tokens by."""

    block: _Block
    query: Tensor
    key: Tensor
    alive: Tensor
    head_mask: Tensor

    @torch.no_grad()
    def importance(
        self, ranking: Ranking, tokens: TokenState, rotary: tuple[Tensor, ...], layers: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Importance ``[B, N]`` of the tokens after this block, and the margin of ``Kept``."""
        if ranking == "received":
            return self.received(tokens), None
        if ranking == "mean_head":
            return self.mean_head(tokens), None
        following = replace(
            self.block, layer=layers[self.block.number + 1], number=self.block.number + 1
        )
        ahead = _to_device(tokens, following.layer)
        normed = following.layer.input_layernorm(ahead.states)
        if ranking == "diversity":
            mask = self.head_mask[:: self.query.shape[1] // self.key.shape[1]]
            normed = normed.to(self.key.device)
            importance, margin = diversity(self.key, mask, normed, tokens.kind, tokens.alive)
            return importance * (tokens.kind != ANSWER), margin
        query, key = following.rotated(normed, tuple(part.to(normed.device) for part in rotary))
        record = _AttentionRecord(
            following, query, key, ahead.alive, following.head_mask(query, key)
        )
        return record.mean_head(ahead).to(tokens.states.device), None

    def received(self, tokens: TokenState) -> Tensor:
        """Importance by attention received (Eq. 6 and 7)."""
        calibrated = self.block.options.calibrated
        importance = received_attention(self._scores(tokens), self.head_mask, calibrated)
        return importance * (tokens.kind != ANSWER)

    def mean_head(self, tokens: TokenState) -> Tensor:
        return mean_attention(self._scores(tokens), self.head_mask) * (tokens.kind != ANSWER)

    def _scores(self, tokens: TokenState) -> Tensor:
        scale = self.block.layer.self_attn.scaling
        return _ranking_scores(self.query, self.key, tokens, self.alive, scale)


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
    """Move the tokens to the layer's device: layers may be spread over several GPUs."""
    device = _device(layer)
    if tokens.states.device == device:
        return tokens
    moved = {name: value.to(device) for name, value in vars(tokens).items() if value is not None}
    return TokenState(**moved)
