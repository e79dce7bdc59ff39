"""A small random CLIP for pictures of EmojiScenes."""

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from comp.families.clip import ClipAdapter
from comp.training.tiny_blip import clip_processor

LAYERS, HEADS, WIDTH, FFN = 3, 4, 32, 48


def random_clip(seed=0):
    torch.manual_seed(seed)
    processor = clip_processor()
    tokenizer = processor.tokenizer
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    vision = CLIPVisionConfig(image_size=168, patch_size=14, **sizes)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.4 * parameter[0].numel() ** -0.5)
    return ClipAdapter(model, processor)
