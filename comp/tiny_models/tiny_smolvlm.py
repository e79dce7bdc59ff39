"""Architecture of ``tiny-smolvlm``: a real SmolVLM, small enough for the repository.

Pictures of any size become up to 2x2 tiles of 112 pixels and the whole. A SigLIP tower (patch 14, 4 layers)
gives 64 patches of each; pixel shuffle joins 2x2 of them, so that a tile has 16 image tokens. The decoder is
a Llama of 7 layers with 8 query heads on 4 KV heads. In bfloat16 its weights stay below 10 MiB.

It starts from tiny-llava: ``start_from`` copies the parts of it that matter most.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Idefics3Processor,
    LlamaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from comp.checkpoints.image_prompt import MarkedTiles
from comp.checkpoints.image_settings import Tiles
from comp.checkpoints.tiling import Grid
from comp.tiny_models.tiny_tokenizer import MODEL_MAX_LENGTH, build_tokenizer

PATCH_SIZE = 14
SHUFFLE = 2
TILES = Tiles(longest_edge=224, edge=112)
GRID = TILES.edge // PATCH_SIZE // SHUFFLE  # image tokens of an edge of a tile
RESAMPLE = 1  # Pillow's number of Lanczos, as SmolVLM has it
TOWER_WIDTH, WIDTH = 160, 256
KV_HEADS, HEAD_DIM = 4, 32
CHANNELS = 384
# Without these layers tiny-llava loses least (cross-entropy of answers 0.021 becomes 0.039 and 0.194).
LEFT_OUT, LEFT_OUT_OF_TOWER = 5, 2
SMALL = 0.1  # of query heads that start without keys of their own, as a share of tiny-llava's output matrix


def smolvlm_tokenizer() -> PreTrainedTokenizerFast:
    """Build tiny-llava's tokenizer with the tokens around tiles."""
    words = dict.fromkeys(MarkedTiles().words(Grid(2, 2)))
    return build_tokenizer([*words, "<end_of_utterance>"])


def tiny_smolvlm_config(tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    """Return the configuration."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=MODEL_MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = {
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": 4 * TOWER_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "image_size": TILES.edge,
        "patch_size": PATCH_SIZE,
    }
    return SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=SHUFFLE,
        tie_word_embeddings=True,
    )


def tiny_smolvlm_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Return a processor that cuts tiles; SmolVLM's own wants torchvision for videos, and writes the same."""
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": TILES.longest_edge},
        max_image_size={"longest_edge": TILES.edge},
        resample=RESAMPLE,
    )
    return Idefics3Processor(
        images, tokenizer, image_seq_len=GRID**2, chat_template=tokenizer.chat_template
    )


@torch.no_grad()
def start_from(
    model: SmolVLMForConditionalGeneration,
    source: LlavaForConditionalGeneration,
    run: Callable[[], object],
) -> None:
    """Copy tiny-llava's weights: words, the decoder's most used heads and channels, and the tower.

    Args:
        model: of ``tiny_smolvlm_config``.
        source: tiny-llava.
        run: runs ``source`` on questions; what its heads and channels put out ranks them.
    """
    language, own = source.model.language_model, model.model.text_model
    inputs = _mean_squares(language, run)
    words: Tensor = language.embed_tokens.weight
    own.embed_tokens.weight[: len(words)] = words
    own.norm.weight.copy_(language.norm.weight)
    kept = [layer for number, layer in enumerate(language.layers) if number != LEFT_OUT]
    for layer, into in zip(kept, own.layers, strict=True):
        into.input_layernorm.load_state_dict(layer.input_layernorm.state_dict())
        into.post_attention_layernorm.load_state_dict(layer.post_attention_layernorm.state_dict())
        _copy_heads(layer.self_attn, into.self_attn, inputs[layer.self_attn.o_proj])
        _copy_channels(layer.mlp, into.mlp, inputs[layer.mlp.down_proj])
    _copy_tower(source.model.vision_tower, model.model.vision_model)


def _mean_squares(language: Any, run: Callable[[], object]) -> dict[nn.Module, Tensor]:
    """Return, by projection, the mean square of each of its inputs."""
    squares: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares[module] = inputs[0].float().square().flatten(0, -2).mean(0)

    hooks = [
        projection.register_forward_pre_hook(see)
        for layer in language.layers
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return squares


def _copy_heads(attention: Any, into: Any, squares: Tensor) -> None:
    """Copy the heads with the largest output with their keys; the others get the keys of one of those."""
    outputs = attention.o_proj.weight.square().sum(0) * squares
    order = outputs.view(-1, HEAD_DIM).sum(1).argsort(descending=True)
    first, rest = order[:KV_HEADS], order[KV_HEADS:]
    queries = torch.stack([first, rest], dim=1).flatten()  # two neighbours share a KV head
    rows = (queries[:, None] * HEAD_DIM + torch.arange(HEAD_DIM)).flatten()
    shared = (first[:, None] * HEAD_DIM + torch.arange(HEAD_DIM)).flatten()
    into.q_proj.weight.copy_(attention.q_proj.weight[rows])
    into.k_proj.weight.copy_(attention.k_proj.weight[shared])
    into.v_proj.weight.copy_(attention.v_proj.weight[shared])
    scale = torch.tensor([1.0, SMALL]).repeat(KV_HEADS).repeat_interleave(HEAD_DIM)
    into.o_proj.weight.copy_(attention.o_proj.weight[:, rows] * scale)


def _copy_channels(mlp: Any, into: Any, squares: Tensor) -> None:
    outputs = mlp.down_proj.weight.square().sum(0) * squares
    kept = outputs.argsort(descending=True)[:CHANNELS]
    into.gate_proj.weight.copy_(mlp.gate_proj.weight[kept])
    into.up_proj.weight.copy_(mlp.up_proj.weight[kept])
    into.down_proj.weight.copy_(mlp.down_proj.weight[:, kept])


def _copy_tower(tower: Any, into: Any) -> None:
    into.embeddings.patch_embedding.weight.copy_(tower.embeddings.patch_embedding.weight)
    layers = [
        layer for number, layer in enumerate(tower.encoder.layers) if number != LEFT_OUT_OF_TOWER
    ]
    for layer, other in zip(layers, into.encoder.layers, strict=True):
        other.load_state_dict(layer.state_dict())
