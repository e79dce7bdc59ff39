"""Slim BLIPs as ``transformers`` models: cut blocks and token dropping in the architecture.

One class for each task; that of statements about two images is in ``nlvr``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipPreTrainedModel,
)
from transformers.models.blip.modeling_blip import (
    BlipForConditionalGenerationModelOutput,
    BlipImageTextMatchingModelOutput,
    BlipTextVisionModelOutput,
)
from transformers.models.blip.modeling_blip_text import BlipTextAttention

from comp.families.blip.forward import encoded_by, memories_of, seen_by
from comp.families.blip.slim_config import SlimBlip
from comp.families.blip.text_forward import Memory

SLIM_BLIP = "comp_blip"


class CompBlipConfig(BlipConfig):
    """A BLIP config with ``pruning``: sizes of every block, and the drops (see ``slim_config``)."""

    model_type = SLIM_BLIP
    pruning: dict | None = None


class PaddedCrossAttention(BlipTextAttention):
    """Cross-attention that applies the mask of its memory.

    transformers (seen: 5.23) passes that mask under another argument's name, so that it is lost. No report
    of it is known; the class can be removed once ``BlipTextLayer`` passes the mask by its own name.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        **_unused: object,
    ) -> tuple[Tensor, Tensor]:
        mixed, attention = self.self(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        return self.output(mixed, hidden_states), attention


class _Slim(SlimBlip, BlipPreTrainedModel):
    """Base class of slim BLIPs; it comes before the dense class."""

    config: CompBlipConfig

    def __init__(self, config: CompBlipConfig) -> None:
        super().__init__(config)
        decoder = getattr(self, "text_decoder", None)
        for number, layer in enumerate([] if decoder is None else decoder.bert.encoder.layer):
            layer.crossattention = PaddedCrossAttention(
                config.text_config, is_cross_attention=True, layer_idx=number
            )
        self.shrink()


class CompBlipForConditionalGeneration(_Slim, BlipForConditionalGeneration):
    """BLIP for captions, slim."""

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **_unused: object,
    ) -> BlipForConditionalGenerationModelOutput:
        """As ``BlipForConditionalGeneration``; image states are those of the tokens that stayed."""
        states = seen_by(self, pixel_values, self.forwarding).states
        said = self.text_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states,
            labels=labels,
            reduction="mean",
            logits_to_keep=logits_to_keep,
        )
        return BlipForConditionalGenerationModelOutput(
            loss=said.loss, logits=said.logits, image_embeds=states, last_hidden_state=states
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        """As ``BlipForConditionalGeneration.generate``: captions, or prompts continued."""
        states = seen_by(self, pixel_values, self.forwarding).states
        text = self.config.text_config
        if input_ids is None:
            prompt = torch.full((len(states), 1), text.bos_token_id, device=states.device)
        else:  # the first token becomes the start token; the end token is removed
            prompt = input_ids[:, :-1].clone()
            prompt[:, 0] = text.bos_token_id
            attention_mask = None if attention_mask is None else attention_mask[:, :-1]
        return self.text_decoder.generate(
            input_ids=prompt,
            attention_mask=attention_mask,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            encoder_hidden_states=states,
            **generate_kwargs,
        )


class CompBlipForQuestionAnswering(_Slim, BlipForQuestionAnswering):
    """BLIP for questions, slim."""

    def encode_question(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Memory]:
        """Encode a question; return image states, and the question's states for the decoder."""
        seen = seen_by(self, pixel_values, self.forwarding)
        read = encoded_by(self, input_ids, attention_mask, memories_of(seen, 1), self.forwarding)
        return seen.states, Memory.of_text(read)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_unused: object,
    ) -> BlipTextVisionModelOutput:
        """As ``BlipForQuestionAnswering``; padding of questions is masked."""
        if labels is None and decoder_input_ids is None:
            raise ValueError("pass labels or decoder_input_ids, or call generate")
        states, memory = self.encode_question(pixel_values, input_ids, attention_mask)
        said = self.text_decoder(
            input_ids=labels if decoder_input_ids is None else decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=memory.states,
            encoder_attention_mask=memory.alive.long(),
            labels=labels,
            reduction="mean",
        )
        return BlipTextVisionModelOutput(
            loss=said.loss, image_embeds=states, last_hidden_state=states
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        """As ``BlipForQuestionAnswering.generate``: answers."""
        _, memory = self.encode_question(pixel_values, input_ids, attention_mask)
        text = self.config.text_config
        start = torch.full((len(input_ids), 1), text.bos_token_id, device=memory.states.device)
        return self.text_decoder.generate(
            input_ids=start,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            encoder_hidden_states=memory.states,
            encoder_attention_mask=memory.alive.long(),
            **generate_kwargs,
        )


class CompBlipForImageTextRetrieval(_Slim, BlipForImageTextRetrieval):
    """BLIP for retrieval, slim."""

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool = True,
        attention_mask: Tensor | None = None,
        **_unused: object,
    ) -> BlipImageTextMatchingModelOutput:
        """As ``BlipForImageTextRetrieval``: matching scores ``[B, 2]``, or products ``[I, T]``."""
        seen = seen_by(self, pixel_values, self.forwarding)
        memories = memories_of(seen, 1) if use_itm_head else []
        states = encoded_by(
            self, input_ids, attention_mask, memories, self.forwarding
        ).tokens.states
        if use_itm_head:
            score = self.itm_head(states[:, 0])
        else:
            images = F.normalize(self.vision_proj(seen.states[:, 0]), dim=-1)
            score = images @ F.normalize(self.text_proj(states[:, 0]), dim=-1).T
        return BlipImageTextMatchingModelOutput(
            itm_score=score, last_hidden_state=seen.states, question_embeds=states
        )


AutoConfig.register(SLIM_BLIP, CompBlipConfig, exist_ok=True)
AutoModelForImageTextToText.register(
    CompBlipConfig, CompBlipForConditionalGeneration, exist_ok=True
)
AutoModelForVisualQuestionAnswering.register(
    CompBlipConfig, CompBlipForQuestionAnswering, exist_ok=True
)
