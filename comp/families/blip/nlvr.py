"""BLIP for NLVR2: two images, one statement, true or false.

transformers has no such class. This one is built on its modules, as the BLIP paper describes. Every layer
of the text encoder attends to both images, each by its own projections. Both results are joined by their
mean in the first layers, and by a linear layer from ``merge_from_layer`` on. Names inside the text encoder
are those of the original authors' checkpoints.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BlipConfig, BlipPreTrainedModel, BlipVisionModel
from transformers.models.blip.modeling_blip_text import (
    BlipTextAttention,
    BlipTextEmbeddings,
    BlipTextIntermediate,
    BlipTextOutput,
    BlipTextSelfAttention,
)
from transformers.utils import ModelOutput

from comp.errors import CompExportError
from comp.families.blip.forward import encoded_by, memories_of, seen_by
from comp.families.blip.slim_config import SlimBlip
from comp.plan import STATEMENT_IMAGES

NLVR_TYPE = "comp_blip_nlvr"
HIDDEN = -1e9  # added to the scores of padding


class BlipNlvrConfig(BlipConfig):
    """Config of a BLIP for statements about two images; slim with ``pruning`` (``slim_config``)."""

    model_type = NLVR_TYPE
    merge_from_layer: int = 6
    pruning: dict | None = None


@dataclass
class BlipNlvrOutput(ModelOutput):
    """``logits [B, 2]`` of false and true; ``loss`` where labels were given."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class TwinOutput(nn.Module):
    """Joins the outputs of two cross-attentions, ``[B, L, D]`` each, and adds the residual."""

    def __init__(self, config: Any, merge: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            joined = (first + second) / 2
        else:
            joined = self.merge_layer(torch.cat([first, second], dim=-1))
        return self.LayerNorm(joined + residual)


class TwinCrossAttention(nn.Module):
    """Cross-attention to two images."""

    def __init__(self, config: Any, merge: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.output = TwinOutput(config, merge)

    def forward(self, states: Tensor, images: Tensor) -> Tensor:
        """Attend from ``states [B, L, D]`` to ``images [B, 2, N, D]``."""
        first, second = (
            branch(states, encoder_hidden_states=images[:, number])[0]
            for number, branch in enumerate((self.self0, self.self1))
        )
        return self.output(first, second, states)


class NlvrLayer(nn.Module):
    """A layer of the text encoder."""

    def __init__(self, config: Any, merge: bool) -> None:
        super().__init__()
        self.attention = BlipTextAttention(config)
        self.crossattention = TwinCrossAttention(config, merge)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextOutput(config)

    def forward(self, states: Tensor, bias: Tensor, images: Tensor) -> Tensor:
        """Run the layer; ``bias [B, 1, 1, L]`` is added to the scores of self-attention."""
        states, _ = self.attention(states, attention_mask=bias)
        states = self.crossattention(states, images)
        return self.output(self.intermediate(states), states)


class NlvrEncoder(nn.Module):
    """The layers of the text encoder."""

    def __init__(self, config: Any, merge_from_layer: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            NlvrLayer(config, number >= merge_from_layer)
            for number in range(config.num_hidden_layers)
        )


class NlvrTextModel(nn.Module):
    """Text encoder with cross-attention to two images."""

    def __init__(self, config: Any, merge_from_layer: int) -> None:
        super().__init__()
        self.embeddings = BlipTextEmbeddings(config)
        self.encoder = NlvrEncoder(config, merge_from_layer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, images: Tensor) -> Tensor:
        """Encode ``input_ids [B, L]`` with ``images [B, 2, N, D]`` to states ``[B, L, D]``."""
        states = self.embeddings(input_ids=input_ids)
        present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        bias = (1.0 - present[:, None, None].to(states.dtype)) * HIDDEN
        for layer in self.encoder.layer:
            states = layer(states, bias, images)
        return states


class BlipForNlvr2(SlimBlip, BlipPreTrainedModel):
    """Predicts whether a statement about two images is true."""

    config_class = BlipNlvrConfig
    config: BlipNlvrConfig

    def __init__(self, config: BlipNlvrConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = NlvrTextModel(config.text_config, config.merge_from_layer)
        width = config.text_config.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.shrink()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights, and the positions, which checkpoints do not contain."""
        super()._init_weights(module)
        if isinstance(module, BlipTextEmbeddings):
            places = torch.arange(module.position_ids.shape[-1], device=module.position_ids.device)
            module.position_ids.copy_(places[None])

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> BlipNlvrOutput:
        """Judge statements.

        Args:
            input_ids: ``[B, L]``; the first token of a row is read by the head.
            pixel_values: ``[B, 2, C, S, S]``.
            attention_mask: ``[B, L]``, 0 where padded.
            labels: ``[B]``, 1 where the statement is true.

        Raises:
            CompExportError: there are not two images for each statement.
        """
        if pixel_values.shape[:2] != (len(input_ids), STATEMENT_IMAGES):
            raise CompExportError(
                f"pixel_values of shape {tuple(pixel_values.shape)} are not two images to each of "
                f"{len(input_ids)} statements: pass [{len(input_ids)}, {STATEMENT_IMAGES}, C, S, S]"
            )
        seen = seen_by(self, pixel_values.flatten(0, 1), self.forwarding)
        memories = memories_of(seen, STATEMENT_IMAGES)
        read = encoded_by(self, input_ids, attention_mask, memories, self.forwarding)
        logits = self.cls_head(read.tokens.states[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return BlipNlvrOutput(loss=loss, logits=logits)


BLOCKS = "visual_encoder.blocks."
RENAMED_BLOCK = {
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
RENAMED = {
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "visual_encoder.norm": "vision_model.post_layernorm",
}


def name_of_original(name: str) -> str | None:
    """Return our name of a tensor in the original authors' BLIP-NLVR checkpoint; ``None`` for buffers."""
    if name.endswith("position_ids"):
        return None
    if name.startswith(BLOCKS):
        number, _, rest = name.removeprefix(BLOCKS).partition(".")
        module, _, leaf = rest.rpartition(".")
        return f"vision_model.encoder.layers.{number}.{RENAMED_BLOCK[module]}.{leaf}"
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def load_original(path: Path, config: BlipNlvrConfig) -> BlipForNlvr2:
    """Load a model from a safetensors file in the original authors' layout.

    Raises:
        CompExportError: it is no safetensors file, or tensors are missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CompExportError(
            f"cannot read {path} as safetensors ({error}): pickles are never loaded, convert it first"
        ) from error
    renamed = {name_of_original(name): tensor for name, tensor in stored.items()}
    state = {name: tensor for name, tensor in renamed.items() if name is not None}
    model = BlipForNlvr2(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which is not expected"
        raise CompExportError(f"{path} {what}: pass a BLIP-NLVR checkpoint of these sizes")
    return model


AutoConfig.register(NLVR_TYPE, BlipNlvrConfig, exist_ok=True)
AutoModel.register(BlipNlvrConfig, BlipForNlvr2, exist_ok=True)
