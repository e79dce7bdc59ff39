"""Tiny random LLaVA checkpoints, written by transformers itself."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from comp.plan import BlockPlan, DropPlan, ImageSelection, PruningPlan, Ranking, Workload

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    "USER",
    "ASSISTANT",
    ":",
    "what",
    "is",
    "this",
    "a",
    "cat",
    "?",
    *(f"w{i}" for i in range(46)),
)
IMAGE_TOKEN = SPECIAL.index("<image>")
IMAGE_SIZE = 56
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=TEMPLATE,
    )


DECODERS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
TOWERS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}


def tiny_config(
    kv_heads: int = 4, layers: int = 4, decoder: str = "llama", tower: str = "clip", **changes
) -> LlavaConfig:
    """16 image tokens, 4 query heads of 8; ``changes`` named text_* and vision_* go inside."""
    if tower == "siglip":
        changes = {"vision_feature_select_strategy": "full"} | changes
    own = ("vision_feature_layer", "vision_feature_select_strategy")
    vision = {
        k[7:]: changes.pop(k) for k in list(changes) if k.startswith("vision_") and k not in own
    }
    text = {k[5:]: changes.pop(k) for k in list(changes) if k.startswith("text_")}
    size = len(SPECIAL) + len(WORDS)
    return LlavaConfig(
        vision_config=TOWERS[tower](
            **{
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "image_size": IMAGE_SIZE,
                "patch_size": 14,
            }
            | ({"projection_dim": 24} if tower == "clip" else {})
            | vision
        ),
        text_config=DECODERS[decoder](
            **{
                "vocab_size": size,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": kv_heads,
                "max_position_embeddings": 128,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            }
            | text
        ),
        **{"image_token_index": IMAGE_TOKEN, "image_seq_length": 16} | changes,
    )


def tiny_model(
    config: LlavaConfig, seed: int = 0, kind: Any = LlavaForConditionalGeneration
) -> Any:
    """Random weights large enough that attention and logits tell tokens apart."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            spread = 1.0 if "embed" in name else 1.3 * parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, std=spread)
        else:
            torch.nn.init.normal_(
                parameter, mean=float("norm" in name and "weight" in name), std=0.1
            )
    return model


def save_processor(directory: Path, strategy: str = "default", class_token: bool = True) -> None:
    tokenizer = tiny_tokenizer()
    LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(class_token),
        chat_template=TEMPLATE,
    ).save_pretrained(directory)


def save_checkpoint(model: LlavaForConditionalGeneration, directory: Path, **options) -> Path:
    model.save_pretrained(directory, **options)
    config = model.config
    class_token = config.vision_config.model_type == "clip_vision_model"
    save_processor(directory, "default" if class_token else "full", class_token)
    return directory


def make_plan(
    config: Any,
    drops: tuple[tuple[int, float, float], ...] = ((1, 0.5, 0.8), (3, 0.333, 0.5)),
    vision: bool = False,
    seed: int = 0,
    model: str = "tiny",
    ranking: Ranking = "received",
    selection: ImageSelection | None = None,
) -> PruningPlan:
    """Return a plan that removes random heads and channels, other ones in every block."""
    rng = np.random.default_rng(seed)
    blocks = []

    def add(part: str, count: int, heads: int, groups: int, width: int) -> None:
        for index in range(count):
            kept_groups = sorted(rng.permutation(groups)[: rng.integers(1, groups + 1)].tolist())
            kept = sorted(rng.permutation(width)[: rng.integers(1, width + 1)].tolist())
            blocks.append(
                BlockPlan(
                    part=part,
                    index=index,
                    num_attention_heads=heads,
                    num_key_value_heads=groups,
                    intermediate_size=width,
                    kept_key_value_heads=tuple(kept_groups),
                    kept_channels=tuple(kept),
                )
            )

    text, tower = config.text_config, config.vision_config
    add(
        "language",
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.intermediate_size,
    )
    if vision:
        heads = tower.num_attention_heads
        add("vision", tower.num_hidden_layers, heads, heads, tower.intermediate_size)
    return PruningPlan(
        family=config.model_type,
        model=model,
        method="comp",
        rate=0.5,
        workload=Workload(image_tokens=16, text_tokens=8),
        macs_dense=200,
        macs=100,
        blocks=tuple(blocks),
        drops=tuple(
            DropPlan(after_layer=m, vision_keep_ratio=v, text_keep_ratio=t, ranking=ranking)
            for m, v, t in drops
        ),
        image_selection=selection,
    )


def prompt(texts: int, images: int = 1, seed: int = 0, batch: int = 1, tokens: int = 16):
    """``(pixel_values, input_ids)``: image tokens in runs between random words, BOS first."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(batch * images, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    rows = []
    for _ in range(batch):
        words = rng.integers(5, len(SPECIAL) + len(WORDS), size=texts).tolist()
        parts = np.array_split(words, images + 1)
        row = [1]
        for number, part in enumerate(parts):
            row += part.tolist() + ([IMAGE_TOKEN] * tokens if number < images else [])
        rows.append(row)
    return pixels, np.array(rows, dtype=np.int64)
