"""Vocabularies of the published sizes: few real words, fillers, special tokens at their ids."""

import json
import string
from functools import cache
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

WORDS = ("the", "cat", "dog", "red", "what", "is", "this", "sitting", "picture", "of", "two", "and")
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_vocabulary(family: str, directory: Path, names: tuple[str, ...]) -> None:
    """The named files of a family's vocabulary (``tokenizer.json``, ``vocab.txt``, ``vocab.json`` …)."""
    tokenizer = {"llava": llama, "blip": bert, "clip": clip}[family]()
    model = json.loads(tokenizer.to_str())["model"]
    by_id = sorted(model["vocab"], key=model["vocab"].__getitem__)
    made = {
        "tokenizer.json": tokenizer.to_str,
        "vocab.txt": lambda: "".join(f"{word}\n" for word in by_id),
        "vocab.json": lambda: json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": lambda: (
            "#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"])
        ),
    }
    for name in names:
        (directory / name).write_text(made[name](), encoding="utf-8")


def _filled(vocabulary: dict[str, int], size: int, word: str) -> None:
    for number in range(len(vocabulary), size):
        vocabulary[f"{word}{number}"] = number


def _merges(vocabulary: dict[str, int], words: list[list[str]]) -> list[tuple[str, str]]:
    """Merge words letter by letter; every prefix of a word is a token too."""
    merges: dict[tuple[str, str], None] = {}
    for first, *letters in words:
        whole = first
        for letter in letters:
            merges[whole, letter] = None
            whole += letter
            vocabulary.setdefault(whole, len(vocabulary))
    return list(merges)


@cache
def llama() -> Tokenizer:
    """Llama's: bytes for what has no token, 32000 tokens, <image> and <pad> after them."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = "▁" + string.ascii_letters + string.digits + "?.,:!'\"-/()"
    for letter in letters:
        vocabulary[letter] = len(vocabulary)
    words = [["▁", *word] for word in (*WORDS, "USER", "ASSISTANT", "What")]
    merges = _merges(vocabulary, words)
    _filled(vocabulary, 32000, "▁word")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in ("<unk>", "<s>", "</s>", "<image>", "<pad>")
        ]
    )
    return tokenizer


@cache
def bert() -> Tokenizer:
    """The uncased one of BERT: special tokens at 0 and from 100 to 103, 30522 tokens."""
    specials = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
    entries = ["[PAD]", *(f"[unused{number}]" for number in range(99)), *specials]
    entries += [*string.punctuation, *string.digits, *string.ascii_lowercase]
    entries += [f"##{letter}" for letter in string.ascii_lowercase + string.digits]
    entries += [word for word in (*WORDS, "##s", "##ing") if word not in entries]
    vocabulary = {word: number for number, word in enumerate(entries)}
    _filled(vocabulary, 30522, "word")
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 101), ("[SEP]", 102)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("[PAD]", *specials)]
    )
    return tokenizer


@cache
def clip() -> Tokenizer:
    """CLIP's: bytes, words that end in </w>, the two special tokens at 49406 and 49407."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(entries)}
    merges = _merges(vocabulary, [[*word[:-1], f"{word[-1]}</w>"] for word in WORDS])
    _filled(vocabulary, 49406, "word")
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary |= {start: 49406, end: 49407}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=end,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(end, 49407), cls_token=(start, 49406), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(start, special=True, normalized=True),
            AddedToken(end, special=True, normalized=False),
        ]
    )
    return tokenizer
