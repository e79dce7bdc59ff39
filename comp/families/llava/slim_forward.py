"""Forward pass of slim vision-language models in ``transformers``: cut blocks, and dropped tokens.

No class of ``transformers`` is patched, so that one process can hold dense and slim models.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.llava.decoder import (
    DecoderCache,
    DecoderOptions,
    LayerCache,
    rules_by_layer,
    run_decoder,
)
from comp.families.llava.forward import embed, image_features
from comp.families.llava.parts import parts_of
from comp.families.llava.tower import tower_blocks
from comp.families.surgery import set_in, set_out
from comp.tokens.drop_rules import rules_from_plan
from comp.tokens.state import TEXT, VISION, TokenState


class SlimForward:
    """Mixin before a model class of ``transformers``: prefill drops tokens, decode steps do not.

    A batch may be padded on the left (as ``generate`` needs it) or the right; keep ratios apply to each
    row.

    Attributes:
        output_class: the class of the model's outputs.
    """

    output_class: ClassVar[Any]
    config: Any
    lm_head: Any

    def decoder_options(self) -> DecoderOptions:
        rules = rules_from_plan(PruningEntry.of_config(self.config).drops or ())
        return DecoderOptions(rules=rules_by_layer(rules))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
        pixel_attention_mask: Tensor | None = None,  # images and tiles are whole
        **_unused: object,
    ) -> Any:
        """As the dense class; logits are those of the tokens that reach the end.

        Raises:
            ValueError: ``labels`` are given (train by ``comp-export prune``, whose batches separate
                answers from prompts), or ``inputs_embeds`` without ``input_ids`` (the kinds of the
                tokens are unknown).
        """
        if labels is not None:
            raise ValueError(
                "a slim model takes no labels: they do not separate answers from the prompt"
            )
        if input_ids is None:
            raise ValueError("a slim model needs input_ids: token dropping tells image from text")
        cache = _SharedCache.of(past_key_values)
        features = None
        # generate may pass the images to every step.
        is_step = cache.decoder.seen > 0 and not (input_ids == self.config.image_token_id).any()
        if pixel_values is not None and not is_step:
            features = image_features(self, self.images_of(pixel_values)).states
        states = embed(self, input_ids, features) if inputs_embeds is None else inputs_embeds
        tokens = self._tokens(input_ids, states, attention_mask, position_ids, cache)
        tokens, _kept = run_decoder(
            parts_of(self).language, tokens, self.decoder_options(), cache.decoder
        )
        cache.write_back()
        states = tokens.states
        if isinstance(logits_to_keep, int) and logits_to_keep == 1:
            states = states.gather(1, tokens.query[:, None, None].expand(-1, 1, states.shape[-1]))
        return self.output_class(
            logits=self.lm_head(states),
            past_key_values=past_key_values,
            image_hidden_states=features,
        )

    def images_of(self, pixel_values: Tensor) -> Tensor:
        """Return the images ``[I, C, S, S]`` of a batch."""
        return pixel_values

    def _tokens(
        self,
        input_ids: Tensor,
        states: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: "_SharedCache",
    ) -> TokenState:
        batch, count = input_ids.shape
        seen = cache.decoder.seen
        if attention_mask is None:
            attention_mask = torch.ones(batch, seen + count, device=input_ids.device)
        position = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -count:]
        if position_ids is not None:
            position = position_ids.expand(batch, -1)[:, -count:]
        alive = attention_mask[:, -count:].float()
        index = torch.arange(seen, seen + count, device=input_ids.device).expand(batch, -1)
        kind = torch.where(input_ids == self.config.image_token_id, VISION, TEXT)
        query = (alive * torch.arange(1, count + 1, device=alive.device)).argmax(1)
        return TokenState(states, position, kind, alive, index, query)


class _SharedCache:
    """Cache of each layer, read from and written back to a cache of ``transformers``."""

    def __init__(self, owner: Cache | None, decoder: DecoderCache) -> None:
        self.owner, self.decoder = owner, decoder

    @classmethod
    def of(cls, owner: Cache | None) -> "_SharedCache":
        if owner is None:
            return cls(None, DecoderCache())
        if not isinstance(owner, DynamicCache):
            raise ValueError(f"a slim model needs a DynamicCache, not {type(owner).__name__}")
        alive = getattr(owner, "comp_alive", {})
        layers = {
            number: LayerCache(layer.keys, layer.values, alive[number])
            for number, layer in enumerate(owner.layers)
            if number in alive
        }
        return cls(owner, DecoderCache(layers, owner.get_seq_length() if layers else 0))

    def write_back(self) -> None:
        if self.owner is None:
            return
        for number, layer in self.decoder.layers.items():
            have = self.owner.layers[number] if number < len(self.owner.layers) else None
            old = 0 if have is None or not have.is_initialized else have.get_seq_length()
            self.owner.update(layer.key[:, :, old:], layer.value[:, :, old:], number)
        self.owner.comp_alive = {n: layer.alive for n, layer in self.decoder.layers.items()}


def resize(model: Any, pruning: PruningEntry) -> None:
    """Replace the projections of each block by ones of the recorded sizes."""
    if pruning.language is not None:
        layers = parts_of(model).language.layers
        for layer, (groups, width) in zip(layers, pruning.language.blocks, strict=True):
            attention, head_dim = layer.self_attn, layer.self_attn.head_dim
            heads = groups * attention.num_key_value_groups
            set_out(attention, ("q_proj",), heads * head_dim)
            set_out(attention, ("k_proj", "v_proj"), groups * head_dim)
            set_in(attention, "o_proj", heads * head_dim)
            set_out(layer.mlp, ("gate_proj", "up_proj"), width)
            set_in(layer.mlp, "down_proj", width)
    if pruning.vision is not None:
        tower = tower_blocks(parts_of(model).tower)
        for block, left in zip(tower, pruning.vision.blocks, strict=False):
            block.resize(*left)
