"""Tokenizer files of checkpoints in the spellings that are in circulation, small."""

import json
import string
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

LETTERS = string.ascii_letters + string.digits + "?.,:!'\"-<>/|[]{}()"
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_FRAME = ("<|startoftext|>", "<|endoftext|>")


def llama(directory: Path, metaspace: bool = False, **settings: object) -> Path:
    """A LLaVA's: ``tokenizer.json`` in the old form (Prepend) or the new one, of LlamaTokenizer."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for letter in "▁" + LETTERS:
        vocab[letter] = len(vocab)
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    for first, second in pairs:
        vocab.setdefault(first + second, len(vocab))
    model = models.BPE(vocab, pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    result = Tokenizer(model)
    if metaspace:
        result.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        result.normalizer = normalizers.Sequence(parts)
    result.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    result.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
    result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return saved(
        result,
        directory,
        "llava",
        {
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "legacy": False,
            "tokenizer_class": "LlamaTokenizer",
            "image_token": "<image>",
        }
        | settings,
    )


def byte_level(directory: Path, **settings: object) -> Path:
    """A LLaVA's on Llama 3: bytes, though its class is called LlamaTokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    special = ("<|begin_of_text|>", "<|eot_id|>", "<image>")
    result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    names = {"bos_token": special[0], "eos_token": special[1], "tokenizer_class": "LlamaTokenizer"}
    return saved(result, directory, "llava", names | settings)


def bert(directory: Path, whole: bool = True, **settings: object) -> Path:
    """A BLIP's: ``tokenizer.json``, or ``vocab.txt`` alone."""
    words = ["a", "cat", "the", "Cat", "cafe", "café", "##s", "##fe", "."]
    letters = [*string.ascii_letters, *(f"##{letter}" for letter in string.ascii_letters)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, "'", ",", "n't", "!"]
    vocab = [*dict.fromkeys(vocab), "[DEC]", "[ENC]"]
    ids = {word: place for place, word in enumerate(vocab)}
    names = {
        "do_lower_case": True,
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 512,
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    if not whole:
        return described(
            directory, "blip", names | settings, {"vocab.txt": "\n".join(vocab) + "\n"}
        )
    result = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    result.normalizer = normalizers.BertNormalizer()
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    result.decoder = decoders.WordPiece()
    result.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in vocab[:5]])
    return saved(result, directory, "blip", names | settings)


def clip(
    directory: Path, whole: bool = True, added: tuple[str, ...] = (), **settings: object
) -> Path:
    """A CLIP's: ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: place for place, letter in enumerate(alphabet)}
    for letter in alphabet:
        vocab[f"{letter}</w>"] = len(vocab)
    pairs = [("t", "h"), ("th", "e</w>"), ("a", "t</w>"), ("c", "at</w>")]
    for first, second in pairs:
        vocab.setdefault(first + second, len(vocab))
    for token in CLIP_FRAME:
        vocab[token] = len(vocab)
    start, end = CLIP_FRAME
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    names |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    if not whole:
        merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in pairs)]) + "\n"
        files = {"vocab.json": json.dumps(vocab), "merges.txt": merges}
        return described(directory, "clip", names | settings, files)
    result = Tokenizer(
        models.BPE(
            vocab, pairs, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=end
        )
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    result.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    result.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CLIP_FRAME])
    result.add_tokens([AddedToken(token, normalized=False) for token in added])
    return saved(result, directory, "clip", names | settings)


def saved(
    tokenizer: Tokenizer, directory: Path, model_type: str, settings: dict[str, object]
) -> Path:
    """``tokenizer.json`` with its settings and the configuration of its model."""
    described(directory, model_type, settings, {})
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def described(
    directory: Path, model_type: str, settings: dict[str, object], files: dict[str, str]
) -> Path:
    """The settings of a tokenizer, the type of its model, and files."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": model_type, "text_config": {}, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def stored(directory: Path, padding: int | None = None, truncation: int | None = None) -> Path:
    """The file as it is saved after a batch was padded and cut off."""
    path = str(directory / "tokenizer.json")
    result = Tokenizer.from_file(path)
    if padding:
        result.enable_padding(length=padding)
    if truncation:
        result.enable_truncation(truncation)
    result.save(path)
    return directory
