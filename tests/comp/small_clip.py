"""A small random CLIP, and random plans for it."""

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from comp.families.clip.adapter import ClipAdapter
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload
from comp.tiny_models.tiny_blip import clip_processor

LAYERS, HEADS, WIDTH, FFN = 3, 4, 32, 48


def random_clip(seed=0, image_size=168, positions=64, act="quick_gelu", width=WIDTH):
    """Weights large enough that attention is not flat, biases that matter."""
    torch.manual_seed(seed)
    processor = clip_processor()
    tokenizer = processor.tokenizer
    sizes = {
        "hidden_size": width,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act=act,
        **sizes,
    )
    vision = CLIPVisionConfig(image_size=image_size, patch_size=14, **sizes)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.4 * parameter[0].numel() ** -0.5)
        elif name != "logit_scale":
            norm = float("norm" in name and "weight" in name)
            torch.nn.init.normal_(parameter, mean=norm, std=0.1)
    return ClipAdapter(model, processor)


def random_plan(seed=0, seen=0.6, read=0.7, image_tokens=145, text_tokens=12):
    """Return random heads and channels; these shares of tokens are dropped in every block but the last."""
    rng = np.random.default_rng(seed)

    def some(of, least):
        return tuple(sorted(rng.permutation(of)[: rng.integers(least, of + 1)].tolist()))

    blocks = tuple(
        BlockPlan(
            part=part,
            index=index,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=FFN,
            kept_key_value_heads=some(HEADS, 1),
            kept_channels=some(FFN, 4),
        )
        for part in ("vision", "language")
        for index in range(LAYERS)
    )
    drops = tuple(
        DropPlan(part=part, after_layer=layer, vision_keep_ratio=vision, text_keep_ratio=text)
        for part, vision, text in (("vision", seen, 1.0), ("language", 1.0, read))
        for layer in range(1, LAYERS)
    )
    return PruningPlan(
        family="clip",
        model="tiny",
        method="test",
        rate=0.5,
        workload=Workload(image_tokens=image_tokens, text_tokens=text_tokens),
        macs_dense=2,
        macs=1,
        blocks=blocks,
        drops=drops,
    )
