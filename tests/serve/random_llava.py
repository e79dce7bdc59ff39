"""A tiny random LLaVA of transformers' own, and pictures of noise."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from comp.plan import DropPlan
from comp.runs import RUN_VERSION

SIDE, PATCH, LAYERS, HEADS, FFN = 56, 14, 4, 4, 96
IMAGE_TOKENS = (SIDE // PATCH) ** 2
MAX_POSITIONS = 256
DROPS = (
    DropPlan(after_layer=1, vision_keep_ratio=0.5, text_keep_ratio=0.9),
    DropPlan(after_layer=3, vision_keep_ratio=0.4, text_keep_ratio=0.8),
)


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor


def random_llava(tokenizer, seed=0, key_value_heads=HEADS, intermediate=FFN):
    """Random weights, large enough that greedy answers differ from step to step."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=intermediate,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=MAX_POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 * 1.5)
    return model


def noise(seed, width=80, height=60):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def make_run(folder, dense_artifact, compressed_artifact):
    """A run directory of these artifacts."""
    path = folder / "runs" / "tiny-random"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"version": RUN_VERSION, "model": "tiny-random"}))
    (path / "onnx").symlink_to(compressed_artifact, target_is_directory=True)
    (path / "onnx-dense").symlink_to(dense_artifact, target_is_directory=True)
    return path
