"""A small random LLaVA with grouped-query attention, and questions for it."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from comp.data.emoji_scenes.examples import EmojiScenes
from comp.families.llava.adapter import LlavaAdapter
from comp.tiny_models.tiny_llava import tiny_llava_processor
from comp.tiny_models.tiny_tokenizer import build_tokenizer

LAYERS, HEADS, GROUPS, HEAD_DIM, WIDTH, CHANNELS = 4, 4, 2, 8, 64, 160


def small_config(tokenizer, **text_changes):
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=168,
            patch_size=42,
            projection_dim=24,
        ),
        text_config=LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": CHANNELS,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": GROUPS,
                "head_dim": HEAD_DIM,
                "max_position_embeddings": 256,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                **text_changes,
            }
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def small_adapter(seed=0, **text_changes):
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(small_config(tokenizer, **text_changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    processor = tiny_llava_processor(tokenizer)
    processor.patch_size = 42
    return LlavaAdapter(model, processor)


def questions(count, start=0, split="validation"):
    data = EmojiScenes(split, start + count)
    return [data[start + i] for i in range(count)]
