"""Tiny random checkpoints of families with tiles, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from tests.export.tiny import IMAGE_TOKEN, tiny_model, tiny_tokenizer

EDGE, LONGEST = 28, 84  # pixels of a tile and of the longer edge: up to 3 x 3 tiles
INTERN_WORDS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "video_token": "<video>",
}
WORDS = (
    *(word for word in INTERN_WORDS.values() if word != "<image>"),
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
)
CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
    "internvl": (InternVLConfig, InternVLForConditionalGeneration, GotOcr2ImageProcessorPil),
}
# Fields of the image processor: up to 3 x 3 tiles, or 9 in any rows and columns.
BY_LONGEST = {"size": {"longest_edge": LONGEST}, "max_image_size": {"longest_edge": EDGE}}
FIELDS: dict[str, dict[str, Any]] = {
    "smolvlm": BY_LONGEST,
    "idefics3": BY_LONGEST,
    "internvl": {"size": {"height": EDGE, "width": EDGE}, "max_patches": 9},
}
# As SmolVLM's own: the image comes where the message has it.
TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_tiled(family: str = "smolvlm", seed: int = 0, **changes: Any) -> Any:
    """4 image tokens a tile, 6 query heads on 2 KV heads; ``changes`` named text_* and vision_* go inside."""
    kind, model, _ = CLASSES[family]
    vision = {k[7:]: changes.pop(k) for k in list(changes) if k.startswith("vision_")}
    own: dict[str, Any] = {"scale_factor": 2}
    if family == "internvl":
        vision = {"attention_bias": True, "layer_scale_init_value": 0.7} | vision
        own = {"downsample_ratio": 0.5}
    text = {k[5:]: changes.pop(k) for k in list(changes) if k.startswith("text_")}
    config = kind(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": EDGE,
            "patch_size": 7,
        }
        | vision,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tiled_tokenizer()),
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        | text,
        image_token_id=IMAGE_TOKEN,
        **own | changes,
    )
    made = tiny_model(config, seed, model)
    made.generation_config.eos_token_id = 2
    return made


def tiled_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokens = [AddedToken(word, normalized=False, special=True) for word in WORDS]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_tiled(model: Any, directory: Path, **settings: Any) -> Path:
    """Write a checkpoint as published ones are: image processor and tokenizer in files of their own."""
    model.save_pretrained(directory)
    kind = model.config.model_type
    tokenizer = tiled_tokenizer()
    if kind == "internvl":
        tokenizer.init_kwargs["extra_special_tokens"] = INTERN_WORDS
        tokenizer._set_model_specific_special_tokens(special_tokens=INTERN_WORDS)
    tokenizer.save_pretrained(directory)
    *_, processor = CLASSES[kind]
    processor(**(FIELDS[kind] | settings)).save_pretrained(directory)
    return directory


@torch.no_grad()
def tiled_logits(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[V]`` of the last token, by transformers; ``pixels [T, 3, S, S]`` are of one prompt."""
    images = {}
    if len(pixels):
        images = {"pixel_values": pixels if model.config.model_type == "internvl" else pixels[None]}
    return model(input_ids=ids, **images).logits[0, -1]
