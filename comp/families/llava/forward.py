"""Forward pass of a LLaVA: tower, projector and decoder, with masks, drop rules and observers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comp.adapter import Observer
from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.encoder.forward import EncoderOptions, TowerBlock
from comp.families.llava.decoder import DecoderCache, DecoderOptions, Kept, run_decoder
from comp.families.llava.parts import parts_of
from comp.families.llava.tower import embedded, has_class_token, tower_blocks
from comp.masks import BlockKey, Masks
from comp.plan import ImageSelection
from comp.tokens.attention import attend
from comp.tokens.drop_rules import ALWAYS
from comp.tokens.image_selection import Selected, mean_key, select_tokens, tower_attention
from comp.tokens.state import ANSWER, VISION, TokenState


@dataclass(frozen=True)
class LlavaBatch:
    """Prompts, optionally with answers; rows are padded on the right.

    Attributes:
        pixel_values: ``[I, 3, H, W]``, images in the order their tokens appear.
        input_ids: ``[B, N]`` with image tokens expanded.
        kind: ``VISION``, ``TEXT`` or ``ANSWER`` for each token, ``[B, N]``.
        alive: 1 for tokens, 0 for padding, ``[B, N]`` float.
        query: index of the last instruction token, ``[B]``.
        labels: at each place the token to be predicted there, ``IGNORE`` elsewhere, ``[B, N]``.
        features: projected image features ``[I, T, d]``, if they are computed already.
    """

    pixel_values: Tensor
    input_ids: Tensor
    kind: Tensor
    alive: Tensor
    query: Tensor
    labels: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device) -> "LlavaBatch":
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return LlavaBatch(**moved)


IGNORE = -100


@dataclass(frozen=True)
class LlavaOutput:
    """Output of a LLaVA.

    Attributes:
        tokens: final tokens, with normalised states and original indices.
        kept: tokens that stayed at each drop place, by blocks passed.
        selected: the selected image tokens of the tower; ``None``: all.
    """

    tokens: TokenState
    kept: dict[int, Kept]
    selected: Selected | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """Projected features ``[I, T, d]``, and the selection of the tower's tokens (``None``: all)."""

    states: Tensor
    selected: Selected | None = None


def config_selection(config: Any) -> ImageSelection | None:
    """Image selection of a model with this config."""
    return PruningEntry.of_config(config).image_selection


def image_features(
    model: Any,
    pixel_values: Tensor,
    masks: Masks | None = None,
    observer: Observer | None = None,
    selection: ImageSelection | None = None,
) -> ImageFeatures:
    """Image features by the config's feature layer and select strategy.

    Tower layers after the last feature layer are not run. ``selection`` is by default the config's.
    """
    config, parts = model.config, parts_of(model)
    tower = parts.tower
    feature_layers = used_feature_layers(config)
    states = embedded(tower, pixel_values)
    layers, last = [states], None
    for number, block in enumerate(tower_blocks(tower)[: max(feature_layers)]):
        states, last = _tower_block(block, number, layers[-1], masks, observer)
        layers.append(states)
    has_class = has_class_token(tower)
    first = 1 if has_class and config.vision_feature_select_strategy == "default" else 0
    features = [layers[number][:, first:] for number in feature_layers]
    if not hasattr(config, "vision_feature_layer"):  # then the tower's own output is the feature
        features = [tower.post_layernorm(each) for each in features]
    chosen = torch.cat(features, dim=-1)
    selection = selection or config_selection(config)
    selected = None
    if selection is not None and last is not None:
        query, keys, head_mask = last
        with torch.no_grad():
            scores = tower_attention(query, keys, head_mask, query.shape[-1] ** -0.5, has_class)
            key = mean_key(keys, head_mask)
        if has_class and first == 0:
            scores[:, 0] += ALWAYS  # [CLS] is one of the image's tokens, and always stays
        selected = select_tokens(chosen, scores[:, first:], key[:, first:], selection)
        chosen = selected.states
    return ImageFeatures(parts.connect(chosen), selected)


def used_feature_layers(config: Any) -> list[int]:
    """Feature layers as non-negative indices of hidden states (0: the embeddings).

    A configuration without the field takes the output of the last block.
    """
    layers = getattr(config, "vision_feature_layer", -1)
    count = config.vision_config.num_hidden_layers + 1
    return [index % count for index in ([layers] if isinstance(layers, int) else layers)]


def _tower_block(
    block: TowerBlock, number: int, states: Tensor, masks: Masks | None, observer: Observer | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """States after a block, its queries and keys ``[I, H, N, hd]``, and the soft mask of its heads ``[H]``.

    An observer is shown the importance of tokens in this block for its FFN too, not that in the next one.
    """
    query, key, value = block.attention_inputs(states)
    place: BlockKey = "vision", number
    head_mask = torch.ones(query.shape[1], device=query.device)
    if masks is not None:
        head_mask = masks.heads[place].to(query.device)
    scale = block.head_dim**-0.5
    mixed = attend(query, key, value, None, scale)
    importance = None
    if observer is not None:
        logits = (query.float() @ key.float().transpose(-1, -2)) * scale
        weights = torch.softmax(logits, -1) * head_mask[:, None, None]  # Eq. 7
        importance = weights.amax(1).sum(1)  # Eq. 6: all queries, strongest head
        observer.heads(place, mixed.flatten(2), importance)
    if masks is not None:
        mixed = mixed * head_mask.to(mixed.dtype)[:, None]
    states = block.add_attention(states, mixed.flatten(2))
    hidden = block.hidden(states)
    if observer is not None and importance is not None:
        observer.channels(place, hidden, importance)
    masked = EncoderOptions(masks).masked_channels(place, hidden)
    return block.add_ffn(states, masked), (query, key, head_mask)


def embed(model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
    """Token embeddings ``[B, N, d]`` with image features at the image tokens.

    Raises:
        ValueError: the numbers of image tokens and of features differ.
    """
    image_token = model.config.image_token_id
    states = parts_of(model).language.embed_tokens(input_ids)
    if features is None:
        return states
    places = input_ids == image_token
    if int(places.sum()) != features.shape[0] * features.shape[1]:
        raise ValueError(
            f"{int(places.sum())} image tokens for {features.shape[0]} images of "
            f"{features.shape[1]} features each: expand <image> with the model's processor"
        )
    return states.masked_scatter(places[..., None], features.to(states.dtype))


def run_llava(
    model: Any,
    batch: LlavaBatch,
    options: DecoderOptions,
    cache: DecoderCache | None = None,
    observer: Observer | None = None,
    tower_masks: Masks | None = None,
    freeze_tower: bool = False,
    selection: ImageSelection | None = None,
    until: int | None = None,
) -> LlavaOutput:
    """Run a batch through the whole model: prefill, or teacher forcing.

    ``selection`` is as of ``image_features``; the batch has a place for each selected image token.
    ``until`` is as of ``run_decoder``.
    """
    if batch.features is not None:
        features = ImageFeatures(batch.features)
    else:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze_tower):
            features = image_features(model, batch.pixel_values, tower_masks, observer, selection)
    states = embed(model, batch.input_ids, features.states)
    batch_size, count = batch.input_ids.shape
    index = torch.arange(count, device=states.device).expand(batch_size, -1)
    tokens = TokenState(states, index, batch.kind, batch.alive, index, batch.query)
    language = parts_of(model).language
    tokens, kept = run_decoder(language, tokens, options, cache, observer, until)
    return LlavaOutput(tokens, kept, features.selected)


def prompt_kinds(input_ids: Tensor, image_token_id: int) -> Tensor:
    """Kinds of the tokens of a prompt without an answer."""
    return torch.where(input_ids == image_token_id, VISION, 1)


def answer_step(
    model: Any,
    token: Tensor,
    options: DecoderOptions,
    cache: DecoderCache,
) -> Tensor:
    """Run one decode step: ``token [B]`` to logits ``[B, V]``."""
    states = parts_of(model).language.embed_tokens(token[:, None])
    place = torch.full_like(token[:, None], cache.seen)
    alive = torch.ones_like(place, dtype=torch.float32)
    kind = torch.full_like(place, ANSWER)
    tokens = TokenState(states, place, kind, alive, place, torch.zeros_like(token))
    tokens, _ = run_decoder(parts_of(model).language, tokens, options, cache)
    return model.lm_head(tokens.states[:, -1])
