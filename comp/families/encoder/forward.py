"""Forward pass of an encoder with soft masks, token dropping in any block, and observers.

For CLIP's towers, and for BLIP's vision tower and text models. It calls the modules of ``transformers``
without patching them; ``EncoderBlock`` hides the differences between families. Tokens are dropped after a
block's self-attention, which ranks them, and before its cross-attention and FFN.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from comp.adapter import Observer
from comp.families.surgery import set_in, set_out
from comp.importance.encoder_rankings import AttentionRecord, importance_of, similarity
from comp.importance.parameters import PendingChannels
from comp.masks import BlockKey, BlockShape, Masks
from comp.plan import Part
from comp.tokens.attention import attend, causal_bias, presence_bias
from comp.tokens.dictionary import Responses
from comp.tokens.drop_rules import DropRule
from comp.tokens.merging import Dropped, merge_into_one, merge_similar
from comp.tokens.state import TokenState


@dataclass(frozen=True)
class EncoderBlock(ABC):
    """One block of an encoder; ``layer`` is its module of ``transformers``."""

    layer: Any

    @abstractmethod
    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, H, N, hd]`` of ``states [B, N, D]``."""

    @abstractmethod
    def add_attention(self, states: Tensor, mixed: Tensor) -> Tensor:
        """States after self-attention, of its heads' outputs ``mixed [B, N, H·hd]``."""

    def cross_attend(self, tokens: TokenState, importance: Tensor | None) -> Tensor:
        """States after cross-attention; only some text models have it."""
        del importance
        return tokens.states

    @abstractmethod
    def hidden(self, states: Tensor) -> Tensor:
        """FFN channels ``[B, N, I]`` after the activation."""

    @abstractmethod
    def add_ffn(self, states: Tensor, hidden: Tensor) -> Tensor:
        """States after the FFN, of its channels."""


class TowerBlock(EncoderBlock):
    """A pre-norm block: of CLIP's towers (LLaVA's too), or of BLIP's vision tower."""

    @property
    def head_dim(self) -> int:
        return int(self.layer.self_attn.head_dim)

    @property
    @abstractmethod
    def output(self) -> nn.Linear:
        """Output projection of attention."""

    def add_attention(self, states: Tensor, mixed: Tensor) -> Tensor:
        return states + self.output(mixed)

    def hidden(self, states: Tensor) -> Tensor:
        mlp = self.layer.mlp
        return mlp.activation_fn(mlp.fc1(self.layer.layer_norm2(states)))

    def add_ffn(self, states: Tensor, hidden: Tensor) -> Tensor:
        return states + self.layer.mlp.fc2(hidden)

    def shape(self, part: Part, number: int) -> BlockShape:
        """Sizes of the block, which is ``number`` of a part."""
        return block_shape(part, number, self.output, self.head_dim, self.layer.mlp.fc1)

    @abstractmethod
    def resize_attention(self, width: int) -> None:
        """Replace the projections of attention by ones for heads of this width together."""

    def resize(self, heads: int, channels: int) -> None:
        """Replace the projections by ones for these numbers of heads and FFN channels."""
        self.resize_attention(heads * self.head_dim)
        set_out(self.layer.mlp, ("fc1",), channels)
        set_in(self.layer.mlp, "fc2", channels)


def block_shape(
    part: Part, number: int, output: nn.Linear, head_dim: int, wide: nn.Linear | None
) -> BlockShape:
    """Sizes of a block whose attention ends in ``output``; ``wide`` is the first layer of its FFN."""
    heads = output.in_features // head_dim
    channels = 0 if wide is None else wide.out_features
    return BlockShape(
        part, number, output.out_features, heads, heads, head_dim, channels, gated=False
    )


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

    def head_mask(self, key: BlockKey, mixed: Tensor) -> Tensor:
        """Soft mask ``[H]`` of the heads of ``mixed [B, N, H, hd]``."""
        if self.masks is None:
            return torch.ones(mixed.shape[2], device=mixed.device, dtype=mixed.dtype)
        return self.masks.heads[key].to(mixed.device, mixed.dtype)

    def masked_channels(self, key: BlockKey, hidden: Tensor) -> Tensor:
        """FFN channels ``hidden [B, N, I]`` under their soft mask."""
        if self.masks is None:
            return hidden
        return hidden * self.masks.channels[key].to(hidden.device, hidden.dtype)

    def importance(self, rule: DropRule | None, record: AttentionRecord, states: Tensor) -> Tensor:
        """Importance of tokens ``[B, N]`` by a rule's ranking; without a rule, by attention received."""
        ranking = "received" if rule is None else rule.ranking
        responses = None
        if ranking == "aligned" and self.responses is not None:
            responses = self.responses(states, record.tokens.alive)
        return importance_of(ranking, record, self.calibrated, responses)


@dataclass(frozen=True)
class Encoded:
    """The result of an encoder.

    Attributes:
        entered: presence ``[B, N]`` of the tokens before the first block.
        tokens: those that reached the end.
        kept: those left after each drop place, by blocks passed.
    """

    entered: Tensor
    tokens: TokenState
    kept: dict[int, TokenState]


def run_encoder(
    part: Part,
    blocks: Sequence[EncoderBlock],
    tokens: TokenState,
    options: EncoderOptions,
    causal: bool = False,
    observer: Observer | None = None,
    first: int = 0,
) -> Encoded:
    """Run every block; ``tokens.query`` is the token that always stays ([CLS], end of text).

    Tokens stay in order, so that a causal mask over those that are left is right. ``first`` is the number
    of the first block among those of the part.
    """
    entered = tokens.alive
    kept: dict[int, TokenState] = {}
    pending: PendingChannels | None = None
    for number, block in enumerate(blocks):
        key, rule = (part, first + number), options.rules.get(number + 1)
        ranks = observer is not None or rule is not None
        mixed, record = _attended(block, key, tokens, options, causal, ranks)
        tokens = with_states(tokens, block.add_attention(tokens.states, mixed))
        importance = None
        if record is not None:
            importance = options.importance(rule, record, tokens.states)
            if observer is not None:
                observer.heads(key, record.mixed.flatten(2), importance)
                if pending is not None:
                    pending.tell(observer, importance)
            if rule is not None:
                tokens, importance = drop_tokens(rule, record, tokens, importance)
                kept[number + 1] = tokens
        tokens = with_states(tokens, block.cross_attend(tokens, importance))
        hidden = block.hidden(tokens.states)
        masked = options.masked_channels(key, hidden)
        tokens = with_states(tokens, block.add_ffn(tokens.states, masked))
        if observer is not None and importance is not None:
            pending = PendingChannels(key, hidden, importance)
    if observer is not None and pending is not None:
        pending.tell(observer, None)
    return Encoded(entered, tokens, kept)


def _attended(
    block: EncoderBlock,
    key: BlockKey,
    tokens: TokenState,
    options: EncoderOptions,
    causal: bool,
    ranks: bool,
) -> tuple[Tensor, AttentionRecord | None]:
    """Masked outputs of the heads of self-attention ``[B, N, H·hd]``, and its record if it ranks tokens."""
    query, keys, value = block.attention_inputs(tokens.states)
    bias = presence_bias(tokens.alive)
    if causal:
        bias = bias + causal_bias(query.shape[2], keys.shape[2], keys.device)
    # Earlier merging raises attention by the number of merged tokens.
    if tokens.size is not None and any(
        passed <= key[1] and rule.merge == "proportional" for passed, rule in options.rules.items()
    ):
        bias = bias + tokens.size.clamp(min=1).log()[:, None, None]
    scale = query.shape[-1] ** -0.5
    mixed = attend(query, keys, value, bias, scale)  # [B, N, H, hd]
    head_mask = options.head_mask(key, mixed)
    record = None
    if ranks:
        scores = (query.float() @ keys.float().transpose(-1, -2)) * scale + bias
        record = AttentionRecord(scores, keys, mixed, head_mask.float(), tokens, query)
    if options.masks is not None:
        mixed = mixed * head_mask[:, None]
    return mixed.flatten(2), record


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


def start_tokens(
    states: Tensor, kind: int, alive: Tensor | None = None, stays: Tensor | None = None
) -> TokenState:
    """Token state before the first block.

    Args:
        states: ``[B, N, D]``.
        kind: kind of all tokens, ``VISION`` or ``TEXT``.
        alive: presence ``[B, N]``; by default all are present.
        stays: index of the token that is never dropped ``[B]``; by default the first ([CLS]).
    """
    places = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    kinds = torch.full(states.shape[:2], kind, device=states.device)
    if alive is None:
        alive = torch.ones(states.shape[:2], device=states.device)
    if stays is None:
        stays = torch.zeros(len(states), dtype=torch.long, device=states.device)
    return TokenState(states, places, kinds, alive, places, stays)


def state_that_stays(tokens: TokenState) -> Tensor:
    """State ``[B, D]`` of the token that is never dropped."""
    row = tokens.query[:, None, None].expand(-1, 1, tokens.states.shape[-1])
    return tokens.states.gather(1, row)[:, 0]


def with_states(tokens: TokenState, states: Tensor) -> TokenState:
    """Return the same tokens with other states."""
    return replace(tokens, states=states)
