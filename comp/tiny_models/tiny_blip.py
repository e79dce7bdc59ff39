"""Architecture and initial weights of the tiny BLIPs and of tiny-clip.

All have the vision tower of tiny-llava and start from its weights. Vision and text have the same width, so
that an image patch can be trained to *be* the word for the thing that it shows.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from comp.data.emoji_scenes.scenes import IMAGE_SIZE
from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig
from comp.plan import Task
from comp.tiny_models.tiny_llava import PATCH_SIZE
from comp.tiny_models.word_tokenizer import BLIP, CLIP, MAX_LENGTH, word_tokenizer

BLIP_CLASSES: dict[Task, type] = {
    "question": BlipForQuestionAnswering,
    "caption": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
    "statement": BlipForNlvr2,
}
WIDTH, HEADS, VISION_LAYERS, VISION_FFN, TEXT_FFN = 160, 5, 5, 640, 400
TEXT_LAYERS: dict[Task, int] = {"question": 3, "caption": 4, "retrieval": 4, "statement": 3}
MERGE_FROM = 1  # the first layers take the mean, the others merge, as in the original
PROJECTION = 96


def tiny_blip(task: Task, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a tiny BLIP for a task, with random weights."""
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=VISION_FFN,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",  # as in the tower that it starts from
        initializer_range=0.02,
    )
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=TEXT_FFN,
        num_hidden_layers=TEXT_LAYERS[task],
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    if task == "statement":
        return BlipForNlvr2(
            BlipNlvrConfig(text_config=text, vision_config=vision, merge_from_layer=MERGE_FROM)
        )
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=PROJECTION)
    return BLIP_CLASSES[task](config)


def tiny_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Return a tiny CLIP with random weights."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=VISION_FFN,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=PROJECTION,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=TEXT_FFN,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def blip_processor() -> BlipProcessor:
    """Return a processor with 168 by 168 pixels, CLIP's mean and deviation."""
    images = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return BlipProcessor(images, word_tokenizer(BLIP))


def clip_processor() -> CLIPProcessor:
    """Return a processor with shorter edge 168, centre crop, CLIP's mean and deviation."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return CLIPProcessor(images, word_tokenizer(CLIP))


def text_models(model: Any) -> list[Any]:
    """Return the text encoder and the text decoder of a BLIP, of those that it has."""
    parts = [getattr(model, "text_encoder", None)]
    decoder = getattr(model, "text_decoder", None)
    parts.append(None if decoder is None else decoder.bert)
    return [part for part in parts if part is not None]


def initialise_text(model: Any) -> None:
    """Initialise text models with equal query and key matrices in every attention.

    With patches trained to be words, a word then attends to the patches that show it.
    """
    for part in text_models(model):
        layers = part.encoder.layer
        for name, parameter in part.named_parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=parameter.shape[1] ** -0.5)
                if "embeddings" in name:
                    nn.init.normal_(parameter, std=0.05 if "position" in name else 1.0)
        for layer in layers:
            for module in layer.modules():
                if hasattr(module, "query") and hasattr(module, "key"):
                    module.key.weight.data.copy_(module.query.weight.data)
            for name, module in layer.named_modules():
                if name.endswith(("dense0", "dense1", "output.dense")):
                    module.weight.data.mul_(1 / math.sqrt(2 * len(layers)))


@torch.no_grad()
def tower_from_llava(model: Any, source: LlavaForConditionalGeneration, pixels: Tensor) -> None:
    """Initialise a BLIP tower from the CLIP tower of a LLaVA.

    CLIP normalises its embeddings before the first block, BLIP does not. That norm is folded into the
    embeddings, with the mean deviation on ``pixels [B, C, S, S]``.
    """
    clip: Any = source.model.vision_tower
    blip = model.vision_model
    embedded = clip.embeddings(pixels)
    spread = (embedded.var(-1, unbiased=False) + clip.pre_layrnorm.eps).sqrt()[:, 1:].mean()
    gain = clip.pre_layrnorm.weight / spread
    offset = clip.pre_layrnorm.bias
    kernel = clip.embeddings.patch_embedding.weight
    places = clip.embeddings.position_embedding.weight
    first = clip.embeddings.class_embedding
    blip.embeddings.patch_embedding.weight.copy_(
        (kernel - kernel.mean(0, keepdim=True)) * gain[:, None, None, None]
    )
    blip.embeddings.patch_embedding.bias.copy_(offset)
    blip.embeddings.position_embedding.copy_(
        ((places - places.mean(-1, keepdim=True)) * gain)[None]
    )
    blip.embeddings.class_embedding.copy_(((first - first.mean()) * gain + offset)[None, None])
    for theirs, ours in zip(clip.encoder.layers, blip.encoder.layers, strict=True):
        parts = [getattr(theirs.self_attn, f"{name}_proj") for name in "qkv"]
        ours.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        ours.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        ours.self_attn.projection.load_state_dict(theirs.self_attn.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())


@torch.no_grad()
def statements_from_questions(model: Any, source: Any) -> None:
    """Initialise a BLIP for two images from one that answers questions.

    Both cross-attentions of a layer start from the one for questions; merging starts as the mean.
    """
    model.vision_model.load_state_dict(source.vision_model.state_dict())
    model.text_encoder.embeddings.load_state_dict(source.text_encoder.embeddings.state_dict())
    layers = zip(model.text_encoder.encoder.layer, source.text_encoder.encoder.layer, strict=True)
    for ours, theirs in layers:
        for name in ("attention", "intermediate", "output"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
        cross, single = ours.crossattention, theirs.crossattention
        for branch, dense in ((cross.self0, "dense0"), (cross.self1, "dense1")):
            branch.load_state_dict(single.self.state_dict())
            getattr(cross.output, dense).load_state_dict(single.output.dense.state_dict())
        cross.output.LayerNorm.load_state_dict(single.output.LayerNorm.state_dict())
        if cross.output.merge_layer is not None:
            half = torch.eye(cross.output.merge_layer.out_features) / 2
            cross.output.merge_layer.weight.copy_(torch.cat([half, half], dim=1))
            cross.output.merge_layer.bias.zero_()
