"""Forward pass of a pre-norm encoder with soft masks, token dropping in any block, and observers.

For CLIP's towers and BLIP's vision tower. It calls the modules of ``transformers`` without patching them;
``PreNormBlock`` hides the differences between families. Tokens are dropped between a block's attention,
which ranks them, and its FFN.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from comp.adapter import Observer
from comp.importance.encoder_rankings import AttentionRecord, importance_of, similarity
from comp.masks import Masks
from comp.plan import Part
from comp.tokens.attention import attend, causal_bias, presence_bias
from comp.tokens.dictionary import Responses
from comp.tokens.drop_rules import DropRule
from comp.tokens.merging import Dropped, merge_into_one, merge_similar
from comp.tokens.state import TokenState


class PreNormBlock(Protocol):
    """Interface of one block of an encoder."""

    @property
    def head_dim(self) -> int: ...

    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, H, N, hd]`` of ``states [B, N, D]``, normalised first."""
        ...

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Output projection of attention, ``[B, N, H·hd] → [B, N, D]``."""
        ...

    def hidden(self, states: Tensor) -> Tensor:
        """FFN channels ``[B, N, I]`` after the activation, of normalised states."""
        ...

    def contract(self, hidden: Tensor) -> Tensor:
        """Output projection of the FFN, ``[B, N, I] → [B, N, D]``."""
        ...


@dataclass(frozen=True)
class TowerBlock:
    """Base class of the blocks of CLIP's towers and of BLIP's vision tower."""

    layer: Any

    @property
    def head_dim(self) -> int:
        return int(self.layer.self_attn.head_dim)

    def hidden(self, states: Tensor) -> Tensor:
        mlp = self.layer.mlp
        return mlp.activation_fn(mlp.fc1(self.layer.layer_norm2(states)))

    def contract(self, hidden: Tensor) -> Tensor:
        return self.layer.mlp.fc2(hidden)


@dataclass(frozen=True)
class EncoderOptions:
    """Options of a forward pass.

    Attributes:
        masks: soft masks; ``None``: dense.
        rules: drop rules by number of blocks passed.
        calibrated: whether CIT is on.
        responses: function of the tokens' responses to the entries of a dictionary.
    """

    masks: Masks | None = None
    rules: dict[int, DropRule] = field(default_factory=dict)
    calibrated: bool = True
    responses: Responses | None = None


@dataclass(frozen=True)
class Encoded:
    """The tokens that reached the end, and those left after each drop place, by blocks passed."""

    tokens: TokenState
    kept: dict[int, TokenState]


def run_encoder(
    part: Part,
    blocks: Sequence[PreNormBlock],
    tokens: TokenState,
    options: EncoderOptions,
    causal: bool = False,
    observer: Observer | None = None,
) -> Encoded:
    """Run every block; ``tokens.query`` is the token that always stays ([CLS], end of text).

    Tokens stay in order, so that a causal mask over those that are left is right.
    """
    kept: dict[int, TokenState] = {}
    pending: _Pending | None = None
    for number, block in enumerate(blocks):
        rule = options.rules.get(number + 1)
        ranks = observer is not None or rule is not None
        step = _Attention(part, number, block, options, causal, ranks)
        states, record, mixed = step(tokens)
        tokens = with_states(tokens, states)
        ranker = Ranker(options.calibrated, options.responses)
        importance = None if record is None else ranker.importance(rule, record, states)
        if observer is not None and importance is not None:
            observer.heads((part, number), mixed, importance)
            if pending is not None:
                pending.tell(observer, importance)
        if rule is not None and record is not None and importance is not None:
            dropped, importance = drop_tokens(rule, record, tokens, importance)
            tokens = kept[number + 1] = dropped
        hidden = block.hidden(tokens.states)
        masked = hidden
        if options.masks is not None:
            mask = options.masks.channels[part, number]
            masked = hidden * mask.to(hidden.device, hidden.dtype)
        tokens = with_states(tokens, tokens.states + block.contract(masked))
        if observer is not None and importance is not None:
            pending = _Pending(part, number, hidden, importance)
    if observer is not None and pending is not None:
        pending.tell(observer, pending.own)
    return Encoded(tokens, kept)


@dataclass(frozen=True)
class _Pending:
    """An FFN's activations, waiting for the *next* block's token importance (CIP)."""

    part: Part
    number: int
    hidden: Tensor
    own: Tensor

    def tell(self, observer: Observer, following: Tensor) -> None:
        observer.channels((self.part, self.number), self.hidden, following)


@dataclass(frozen=True)
class _Attention:
    part: Part
    number: int
    block: PreNormBlock
    options: EncoderOptions
    causal: bool
    ranks: bool

    def __call__(self, tokens: TokenState) -> tuple[Tensor, AttentionRecord | None, Tensor]:
        """States after attention, its record if tokens are ranked, and the heads' outputs."""
        query, key, value = self.block.attention_inputs(tokens.states)
        bias = presence_bias(tokens.alive)
        if self.causal:
            bias = bias + causal_bias(query.shape[2], key.shape[2], key.device)
        if tokens.size is not None and self._proportional:
            bias = bias + tokens.size.clamp(min=1).log()[:, None, None]
        scale = self.block.head_dim**-0.5
        mixed = attend(query, key, value, bias, scale)  # [B, N, H, hd]
        head_mask = self._head_mask(query.shape[1], mixed)
        record = None
        if self.ranks:
            scores = (query.float() @ key.float().transpose(-1, -2)) * scale + bias
            record = AttentionRecord(scores, key, mixed, head_mask.float(), tokens, query)
        flat = mixed.flatten(2)
        if self.options.masks is not None:
            mixed = mixed * head_mask[:, None]
        return tokens.states + self.block.attention_output(mixed.flatten(2)), record, flat

    @property
    def _proportional(self) -> bool:
        """Whether earlier merging raises attention by the number of merged tokens (``proportional``)."""
        rules = self.options.rules.items()
        return any(passed <= self.number and rule.merge == "proportional" for passed, rule in rules)

    def _head_mask(self, heads: int, like: Tensor) -> Tensor:
        if self.options.masks is None:
            return torch.ones(heads, device=like.device, dtype=like.dtype)
        return self.options.masks.heads[self.part, self.number].to(like.device, like.dtype)


@dataclass(frozen=True)
class Ranker:
    """Ranks tokens from a block's attention, with CIT on or off, and a dictionary."""

    calibrated: bool
    responses: Responses | None

    def importance(self, rule: DropRule | None, record: AttentionRecord, states: Tensor) -> Tensor:
        """Importance ``[B, N]`` by a rule's ranking; without a rule, by attention received."""
        ranking = "received" if rule is None else rule.ranking
        responses = None
        if ranking == "aligned" and self.responses is not None:
            responses = self.responses(states, record.tokens.alive)
        return importance_of(ranking, record, self.calibrated, responses)


def drop_tokens(
    rule: DropRule, record: AttentionRecord, tokens: TokenState, importance: Tensor
) -> tuple[TokenState, Tensor]:
    """Drop and merge tokens by a rule; return those that are left and their importance."""
    alive = rule.keep(importance, tokens.kind, tokens.alive, tokens.query)
    left, taken = tokens.drop(alive)
    dropped = Dropped(tokens, left, taken)
    if rule.merge in ("similar", "proportional"):
        left = merge_similar(dropped, similarity(record))
    elif rule.merge == "one":
        left = merge_into_one(dropped, importance)
    return left, importance.gather(1, taken)


def start_tokens(states: Tensor, kind: int, alive: Tensor, stays: Tensor) -> TokenState:
    """Token state before the first block.

    Args:
        states: ``[B, N, D]``.
        kind: of all tokens, ``VISION`` or ``TEXT``.
        alive: presence ``[B, N]``.
        stays: index of the token that is never dropped ``[B]``.
    """
    places = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    kinds = torch.full(states.shape[:2], kind, device=states.device)
    return TokenState(states, places, kinds, alive, places, stays)


def state_that_stays(tokens: TokenState) -> Tensor:
    """State ``[B, D]`` of the token that is never dropped."""
    row = tokens.query[:, None, None].expand(-1, 1, tokens.states.shape[-1])
    return tokens.states.gather(1, row)[:, 0]


def with_states(tokens: TokenState, states: Tensor) -> TokenState:
    """Return the same tokens with other states."""
    return replace(tokens, states=states)
