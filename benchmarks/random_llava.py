"""Write a LLaVA checkpoint of a chosen shape with random weights.

    python benchmarks/random_llava.py --shape llava-7b --out DIR

Speed does not depend on the values of weights, so a measurement needs no download. Files and tensor names
are those of a checkpoint on the hub. The same seed gives the same bytes.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from comp.checkpoints.llava_shape import ModelShape
from comp.errors import CompExportError
from comp.utils.console import say
from comp.utils.files import writing_directory
from comp.utils.machine import usable_cores
from export.weights.slim import write_safetensors

SHARD_BYTES = 2_000_000_000
HALF = np.dtype(np.float16)
CHUNK = 1 << 24  # numbers drawn at a time
# Measured on 32 blocks: answers do not repeat a token, and half precision still gives the answers of single
# precision. With a gain of 3.8 (a standard deviation of 0.06 at a width of 4096) it does not.
DECODER_GAIN = 1.5
EMBEDDING_SPREAD = 1.0  # as large as the output of the first block
BIAS_SPREAD = 0.02

TINY: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_seq_length": 64,
    "image_token_index": 250,
    "model_type": "llava",
    "pad_token_id": 251,
    "projector_hidden_act": "gelu",
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "vocab_size": 256,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 32,
        "image_size": 112,
        "intermediate_size": 128,
        "model_type": "clip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "patch_size": 14,
        "projection_dim": 32,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
# LLaVA-S: LLaVA-1.5 with 576 image tokens, small enough for two cores; 259 M parameters.
SMALL: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_seq_length": 576,
    "image_token_index": 7990,
    "model_type": "llava",
    "pad_token_id": 7991,
    "projector_hidden_act": "gelu",
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 16,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-05,
        "vocab_size": 8000,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 512,
        "image_size": 336,
        "intermediate_size": 2048,
        "model_type": "clip_vision_model",
        "num_attention_heads": 8,
        "num_hidden_layers": 12,
        "patch_size": 14,
        "projection_dim": 512,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
CONFIGS = {"llava-s": SMALL, "tiny": TINY}
SHAPES = ("llava-7b", *CONFIGS)

SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2, as in Llama
TEMPLATE_WORDS = ("USER", "ASSISTANT", ":")
TEMPLATE_TOKENS = 5  # <s> USER : … ASSISTANT :
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def config_of(name: str) -> dict[str, Any]:
    """``config.json`` of one of ``SHAPES``.

    Raises:
        CompExportError: there is no such shape.
    """
    if name not in SHAPES:
        raise CompExportError(f"no shape {name!r}: choose one of {', '.join(SHAPES)}")
    if name in CONFIGS:
        return CONFIGS[name]
    packaged = files("comp") / "models" / "configs" / f"{name}.json"
    return json.loads(packaged.read_text(encoding="utf-8"))


def prompt_of(text_tokens: int, seed: int = 0) -> str:
    """Words that, with the template's, are ``text_tokens`` tokens in every shape's vocabulary.

    Raises:
        CompExportError: the template alone has more tokens.
    """
    count = text_tokens - TEMPLATE_TOKENS
    if count < 1:
        raise CompExportError(f"--text-tokens {text_tokens}: choose {TEMPLATE_TOKENS + 1} or more")
    words = TINY["image_token_index"] - len(SPECIAL) - len(TEMPLATE_WORDS)
    rng = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in rng.integers(0, words, count))


def write_random_llava(name: str, out: Path, seed: int = 0) -> Path:
    """Write the checkpoint: weights in half precision, configuration, tokenizer, processor.

    Args:
        name: one of ``SHAPES``.
        out: directory to write; replaced as a whole once everything is written.
        seed: seed of the weights.

    Returns:
        ``out``.

    Raises:
        CompExportError: no such shape, or no space on the disk.
    """
    config = config_of(name)
    shapes = tensor_shapes(config)
    with writing_directory(out) as directory:
        text = json.dumps(config, indent=2) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
        _write_generation_config(config, directory)
        _write_processor(config, directory)
        _write_weights(shapes, seed, directory)
    return out


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors under their names on the hub, in the model's order."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):  # shapes only: nothing is allocated
        model = LlavaForConditionalGeneration(LlavaConfig.from_dict(dict(config)))
    return {_hub_name(name): tuple(value.shape) for name, value in model.state_dict().items()}


class RandomWeights:
    """Random tensors in half precision (an ``export.weights.checkpoint.WeightSource``), drawn when read.

    Each tensor has its own random numbers, independent of the order of reads.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
        self._shapes = shapes
        self._seed = seed

    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype[Any]:
        return HALF

    def read(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        if "norm" in name.split(".")[-2] and name.endswith(".weight"):
            return np.ones(shape, HALF)
        spread = np.float32(spread_of(name, shape))
        rng = np.random.Generator(np.random.SFC64([self._seed, zlib.crc32(name.encode())]))
        values = np.empty(int(np.prod(shape)), HALF)
        for start in range(0, values.size, CHUNK):
            part = values[start : start + CHUNK]
            part[:] = rng.standard_normal(part.size, np.float32) * spread
        return values.reshape(shape)


def spread_of(name: str, shape: Sequence[int]) -> float:
    """Standard deviation of a tensor's values, chosen to keep the variance from layer to layer."""
    if name.endswith(".bias"):
        return BIAS_SPREAD
    if "embed_tokens" in name:
        return EMBEDDING_SPREAD
    if "position_embedding" in name or "class_embedding" in name:
        return float(shape[-1] ** -0.5)
    gain = DECODER_GAIN if name.startswith("language_model.") else 1.0
    return float(gain * np.prod(shape[1:]) ** -0.5)


def _hub_name(name: str) -> str:
    """The hub name of a tensor of ``LlavaForConditionalGeneration``."""
    for ours, theirs in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def _write_weights(shapes: dict[str, tuple[int, ...]], seed: int, directory: Path) -> None:
    """Write shards and their index; shards in parallel, each one tensor at a time."""
    shards = shards_of(shapes)
    names = [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    with ThreadPoolExecutor(min(len(shards), usable_cores())) as pool:
        done = [
            pool.submit(write_safetensors, RandomWeights(shard, seed), directory / name)
            for name, shard in zip(names, shards, strict=True)
        ]
        for future in done:
            future.result()
    index = {
        "metadata": {"total_size": sum(_bytes(shape) for shape in shapes.values())},
        "weight_map": {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        },
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def shards_of(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Distribute the tensors in order, as many to a shard as fit."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if filled + _bytes(shape) > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _bytes(shape)
    return shards


def _bytes(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * HALF.itemsize


def _write_generation_config(config: dict[str, Any], directory: Path) -> None:
    ids = {
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
        "pad_token_id": config["pad_token_id"],
    }
    text = json.dumps(ids, indent=2) + "\n"
    (directory / "generation_config.json").write_text(text, encoding="utf-8")


def _write_processor(config: dict[str, Any], directory: Path) -> None:
    """Write a tokenizer with one token per word; the image and padding tokens follow the configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    known = [*SPECIAL, *TEMPLATE_WORDS]
    words = [*known, *(f"w{number}" for number in range(config["image_token_index"] - len(known)))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([*SPECIAL, "<image>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
    )
    tower = ModelShape.from_config(config).vision
    side = tower.image_size
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    LlavaProcessor(
        images,
        fast,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a LLaVA checkpoint with random weights.")
    parser.add_argument("--shape", choices=SHAPES, default="llava-7b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        say(f"wrote {write_random_llava(args.shape, args.out, args.seed)}")
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
