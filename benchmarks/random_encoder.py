"""Write a CLIP or BLIP checkpoint of full shape with random weights, in transformers' format.

    python benchmarks/random_encoder.py --shape blip-nlvr --out DIR

Speed and size do not depend on the values of weights, so neither measurements nor tests of the real
format need a download. Vocabularies have the size, kind and special tokens of the real ones
(BERT's word pieces, CLIP's byte pairs), with the words of EmojiScenes among invented entries.
"""

import argparse
import string
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from comp.checkpoints.encoder_shape import BLIP_TEXT, BLIP_VISION, CLIP_TEXT, CLIP_VISION, PACKAGED
from comp.checkpoints.llava_shape import config_of
from comp.errors import CompExportError
from comp.utils.console import say
from comp.utils.files import writing_directory

GAIN = 1.4  # makes attention uneven, so that tokens are ranked without ties
BIAS_SPREAD = 0.1
# Token ids of the original files, which the packaged configurations leave out.
BLIP_TOKENS = {"bos_token_id": 30522, "sep_token_id": 102, "eos_token_id": 2, "pad_token_id": 0}
CLIP_TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # "2": the highest id
BERT_VOCABULARY, BERT_FIRST_WORD = 30522, 999
BERT_SPECIALS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
SMALL: Mapping[str, int] = {  # to try a script with: the same, narrow and with few blocks
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SMALL_IMAGE = 8  # patches per edge


def encoder_config(
    shape: str, small: bool = False, blocks: int | None = None, edge: int | None = None
) -> dict[str, Any]:
    """``config.json`` of one of ``PACKAGED``, with the token ids of the original files.

    Args:
        shape: name of the configuration.
        small: with the widths and depth of ``SMALL``.
        blocks: per tower; ``None`` for the shape's own depth.
        edge: of a picture in pixels; ``None`` for the shape's own.

    Raises:
        CompExportError: there is no such shape, ``blocks`` is below 1, or ``edge`` is no multiple of a patch.
    """
    if shape not in PACKAGED:
        raise CompExportError(f"no shape {shape!r}: choose one of {', '.join(PACKAGED)}")
    if blocks is not None and blocks < 1:
        raise CompExportError(f"--blocks {blocks}: choose 1 or more")
    config = config_of(shape)
    clip = config["model_type"] == "clip"
    defaults = (CLIP_VISION, CLIP_TEXT) if clip else (BLIP_VISION, BLIP_TEXT)
    vision, text = (
        {**whole, **config[part]}
        for part, whole in zip(("vision_config", "text_config"), defaults, strict=True)
    )
    text |= CLIP_TOKENS if clip else BLIP_TOKENS
    if small:
        vision |= SMALL | {"image_size": SMALL_IMAGE * vision["patch_size"]}
        text |= SMALL
    if edge is not None:
        patch = vision["patch_size"]
        if edge < patch or edge % patch:
            raise CompExportError(f"--edge {edge}: choose a multiple of the patch, {patch} pixels")
        vision["image_size"] = edge
    if blocks is not None:
        vision["num_hidden_layers"] = text["num_hidden_layers"] = blocks
    if not clip:
        text["encoder_hidden_size"] = vision["hidden_size"]
    return config | {"vision_config": vision, "text_config": text}


def write_random_encoder(
    shape: str,
    out: Path,
    seed: int = 0,
    small: bool = False,
    blocks: int | None = None,
    edge: int | None = None,
) -> Path:
    """Write the checkpoint: weights in float32, configuration, tokenizer, image processor.

    Args:
        shape: one of ``PACKAGED``.
        out: directory to write; replaced as a whole once everything is written.
        seed: seed of the weights.
        small, blocks, edge: as in ``encoder_config``.

    Returns:
        ``out``.

    Raises:
        CompExportError: no such shape or size, or no space on the disk.
    """
    config = encoder_config(shape, small, blocks, edge)
    model = random_model(config, seed)
    with writing_directory(out) as directory:
        model.save_pretrained(directory)
        processor_of(config).save_pretrained(directory)
    return out


def random_model(config: dict[str, Any], seed: int = 0) -> Any:
    """The model of a configuration, in float32."""
    import torch
    import transformers
    from torch import nn

    from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig

    architecture = config["architectures"][0]
    if architecture == "BlipForNlvr2":
        kind, settings = BlipForNlvr2, BlipNlvrConfig
    elif config["model_type"] == "blip":
        kind, settings = getattr(transformers, architecture), transformers.BlipConfig
    else:
        kind, settings = transformers.CLIPModel, transformers.CLIPConfig
    torch.manual_seed(seed)
    model = kind(settings.from_dict(config))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=GAIN * parameter[0].numel() ** -0.5)
        elif parameter.ndim == 1:
            norm = float("norm" in name.lower() and name.endswith("weight"))
            nn.init.normal_(parameter, mean=norm, std=BIAS_SPREAD)
    return model.eval()


def processor_of(config: dict[str, Any]) -> Any:
    """The processor of a configuration: that of the original checkpoints except for the words."""
    from transformers import (
        BlipImageProcessorPil,
        BlipProcessor,
        CLIPImageProcessorPil,
        CLIPProcessor,
    )

    edge = config["vision_config"]["image_size"]
    square = {"height": edge, "width": edge}
    if config["model_type"] == "clip":
        images = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=square)
        return CLIPProcessor(images, clip_tokenizer())
    return BlipProcessor(BlipImageProcessorPil(size=square), bert_tokenizer())


def bert_tokenizer() -> Any:
    """A tokenizer of 30 522 word pieces, with BERT's special tokens and BLIP's two more."""
    from transformers import BertTokenizer

    pieces = [f"[unused{number}]" for number in range(BERT_FIRST_WORD)]
    for place, token in BERT_SPECIALS.items():
        pieces[place] = token
    letters = string.ascii_lowercase + string.digits
    words = [*string.punctuation, *letters, *(f"##{letter}" for letter in letters), *_words()]
    pieces += dict.fromkeys(words)
    pieces += [f"word{number}" for number in range(BERT_VOCABULARY - len(pieces))]
    tokenizer = BertTokenizer(vocab={piece: place for place, piece in enumerate(pieces)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


def clip_tokenizer() -> Any:
    """49 408 byte pairs: bytes, bytes that end a word, merges of two, and two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    symbols = sorted(ByteLevel.alphabet())
    entries = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    count = CLIP_TEXT["vocab_size"] - len(entries) - 2
    letters = sorted(symbols, key=lambda symbol: (symbol not in string.ascii_letters, symbol))
    pairs = [(first, f"{last}</w>") for first in letters for last in letters][:count]
    entries += [first + last for first, last in pairs] + [CLIP_START, CLIP_END]
    vocabulary = {entry: place for place, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def prompt_of(family: str, text_tokens: int) -> str:
    """A text of ``text_tokens`` tokens in these vocabularies, its two special tokens included.

    Raises:
        CompExportError: the special tokens alone are more.
    """
    if text_tokens < 3:
        raise CompExportError(f"--text-tokens {text_tokens}: choose 3 or more")
    letters = string.ascii_lowercase
    pairs = [first + last for first in letters for last in letters]
    words = pairs if family == "clip" else [f"word{number}" for number in range(len(pairs))]
    return " ".join(words[number % len(words)] for number in range(text_tokens - 2))


@cache
def _words() -> tuple[str, ...]:
    """The words of EmojiScenes."""
    from comp.tiny_models.word_tokenizer import BLIP, word_tokenizer

    vocabulary = word_tokenizer(BLIP).get_vocab()
    return tuple(sorted(word for word in vocabulary if word.isalpha()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a random CLIP or BLIP checkpoint.")
    parser.add_argument("--shape", choices=PACKAGED, default="blip-nlvr")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="narrow, with few blocks, for trials")
    parser.add_argument("--blocks", type=int, help="per tower [the shape's own depth]")
    parser.add_argument("--edge", type=int, help="of a picture, in pixels [the shape's own]")
    args = parser.parse_args(arguments)
    try:
        out = write_random_encoder(
            args.shape, args.out, args.seed, args.small, args.blocks, args.edge
        )
        say(f"wrote {out}")
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
