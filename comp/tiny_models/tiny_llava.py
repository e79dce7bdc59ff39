"""Architecture of ``tiny-llava``: a real LLaVA, small enough for the repository.

A CLIP vision tower (patch 14, 168x168 pixels, 144 image tokens), a two-layer projector and a Llama
decoder of 8 layers with 8 heads. In 16-bit floats its weights stay below 16 MiB.
"""

import math

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from comp.data.emoji_scenes.scenes import IMAGE_SIZE
from comp.tiny_models.tiny_tokenizer import MODEL_MAX_LENGTH

PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
WIDTH = 256


def tiny_llava_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Return the configuration; the vision tower takes about 15 % of the multiply-accumulates."""
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=5,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=160,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=MODEL_MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def tiny_llava_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return a processor with shorter edge 168, centre crop, CLIP's mean and deviation."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def initialise(model: LlavaForConditionalGeneration) -> None:
    """Initialise weights so that names attend to matching patches.

    The decoder's query and key matrices start *equal*, so that attention initially goes to tokens that
    resemble the query: with image patches trained to be the word for what they show, the word "fox" attends
    to the fox. Without this, binding did not appear in 65k images.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        fan_in = parameter[0].numel()
        torch.nn.init.trunc_normal_(parameter, std=min(fan_in, 1024) ** -0.5)
        if "embed_tokens" in name or "position_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    for layer in model.model.language_model.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
        for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
            out.weight.data.mul_(1 / math.sqrt(2 * model.config.text_config.num_hidden_layers))
