"""A checkpoint of LLaVA-1.5-7B's widths with random weights and few blocks (gigabytes)."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from comp.tiny_models.tiny_llava import tiny_llava_processor
from comp.tiny_models.tiny_tokenizer import build_tokenizer

HIDDEN, HEADS, CHANNELS, WORDS = 4096, 32, 11008, 32064
PATCH = 14
DECODER_BLOCKS = 2


def save_full_width(
    directory: Path, vision_blocks: int, feature_layer: int, edge: int = 336, words: int = WORDS
) -> Path:
    """Write it in float16, with this number of vision blocks, of which ``feature_layer`` is read.

    ``edge`` is that of a picture in pixels: fewer than the original has make a shorter prompt. ``words`` is
    the size of the vocabulary.
    """
    tokenizer = build_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=vision_blocks,
            num_attention_heads=16,
            image_size=edge,
            patch_size=PATCH,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=words,
            hidden_size=HIDDEN,
            intermediate_size=CHANNELS,
            num_hidden_layers=DECODER_BLOCKS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(edge // PATCH) ** 2,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration._from_config(config, dtype=torch.float16).save_pretrained(
        directory
    )
    processor = tiny_llava_processor(tokenizer)
    processor.image_processor.size = {"shortest_edge": edge}
    processor.image_processor.crop_size = {"height": edge, "width": edge}
    processor.save_pretrained(directory)
    return directory
