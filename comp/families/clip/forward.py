"""Forward pass of CLIP's towers on ``transformers``' modules, for pruning and as reference of exports."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from comp.adapter import Observer
from comp.families.encoder.forward import (
    Encoded,
    EncoderOptions,
    TowerBlock,
    run_encoder,
    start_tokens,
    state_that_stays,
)
from comp.families.surgery import set_in, set_out
from comp.tokens.dictionary import responses_of
from comp.tokens.state import TEXT, VISION

NOTHING = -1  # replaces the id of padding
LEGACY_EOS = 2  # in configurations that do not store the end of text: the largest id is it


class ClipBlock(TowerBlock):
    """Block of either tower, and of LLaVA's."""

    @property
    def output(self) -> nn.Linear:
        return self.layer.self_attn.out_proj

    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module, normed = self.layer.self_attn, self.layer.layer_norm1(states)
        query, key, value = (
            projection(normed).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        return query, key, value

    def resize_attention(self, width: int) -> None:
        set_out(self.layer.self_attn, ("q_proj", "k_proj", "v_proj"), width)
        set_in(self.layer.self_attn, "out_proj", width)


def blocks_of(tower: Any) -> list[ClipBlock]:
    """Blocks of a CLIP tower."""
    return [ClipBlock(layer) for layer in tower.encoder.layers]


@dataclass(frozen=True)
class Embedded:
    """Output of a tower.

    Attributes:
        embeds: normalised embeddings ``[B, P]``.
        encoded: the tokens that are left.
    """

    embeds: Tensor
    encoded: Encoded


def embed_images(
    model: CLIPModel,
    pixel_values: Tensor,
    options: EncoderOptions,
    observer: Observer | None = None,
) -> Embedded:
    """Embed ``pixel_values [I, C, S, S]``; [CLS], token 0, is never dropped."""
    tower: Any = model.vision_model
    states = tower.pre_layrnorm(tower.embeddings(pixel_values))
    tokens = start_tokens(states, VISION)
    options = replace(options, responses=responses_of(model, "vision"))
    encoded = run_encoder("vision", blocks_of(tower), tokens, options, observer=observer)
    pooled = tower.post_layernorm(state_that_stays(encoded.tokens))
    embeds = F.normalize(model.visual_projection(pooled), dim=-1)
    return Embedded(embeds, encoded)


def embed_texts(
    model: CLIPModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    options: EncoderOptions,
    observer: Observer | None = None,
) -> Embedded:
    """Embed ``input_ids [T, L]``; the end of text is never dropped, tokens after it are ignored."""
    tower: Any = model.text_model
    shown = input_ids.masked_fill(attention_mask == 0, NOTHING)
    stays = end_of_text(shown, model.config.text_config.eos_token_id)
    longest = int(stays.max()) + 1
    input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
    states = tower.embeddings(input_ids=input_ids)
    places = torch.arange(longest, device=input_ids.device)
    attention_mask = attention_mask * (places <= stays[:, None])
    tokens = start_tokens(states, TEXT, attention_mask.to(states.dtype), stays)
    options = replace(options, responses=responses_of(model, "language"))
    blocks = blocks_of(tower)
    encoded = run_encoder("language", blocks, tokens, options, causal=True, observer=observer)
    pooled = tower.final_layer_norm(state_that_stays(encoded.tokens))
    embeds = F.normalize(model.text_projection(pooled), dim=-1)
    return Embedded(embeds, encoded)


def end_of_text(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Index of the first end-of-text token of each text, ``[T]``, which CLIP pools."""
    if eos_token_id == LEGACY_EOS:
        return input_ids.argmax(-1)
    return (input_ids == eos_token_id).int().argmax(-1)
