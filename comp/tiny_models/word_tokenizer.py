"""Tokenizer of the tiny BLIPs and of tiny-clip: one token for a thing, letters for unknown words.

As ``tiny_tokenizer``, over the words of questions, captions and statements, with the special tokens of
the family.
"""

import string
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from comp.data.emoji_scenes.captions import captions_of, draw_scene
from comp.data.emoji_scenes.examples import draw
from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.sprites import sprites
from comp.data.emoji_scenes.statements import KINDS as STATEMENTS
from comp.tiny_models.tiny_tokenizer import EXTRA_WORDS

MAX_LENGTH = 64
SAMPLES = 250  # texts of each kind: enough to see every word of every template


@dataclass(frozen=True)
class Specials:
    """Special tokens; ``start`` and ``end`` are added to every text."""

    tokens: tuple[str, ...]
    pad: str
    unknown: str
    start: str
    end: str
    bos: str


BLIP = Specials(
    ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"),
    pad="[PAD]",
    unknown="[UNK]",
    start="[CLS]",
    end="[SEP]",
    bos="[DEC]",
)
CLIP = Specials(
    ("<|pad|>", "<|unk|>", "<|reserved|>", "<|startoftext|>", "<|endoftext|>"),
    pad="<|pad|>",
    unknown="<|unk|>",
    start="<|startoftext|>",
    end="<|endoftext|>",
    bos="<|startoftext|>",
)


def word_tokenizer(specials: Specials) -> PreTrainedTokenizerFast:
    """Build the tokenizer from the datasets' own words, in the same order on every call."""
    phrases = [name for name in sprites() if " " in name]
    words = [*(name for name in sprites() if " " not in name), *EXTRA_WORDS, *_words()]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*words, *letters, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    entries = list(dict.fromkeys([*specials.tokens, *pieces]))
    vocabulary = {word: index for index, word in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=specials.unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials.tokens])
    tokenizer.add_tokens([AddedToken(phrase, single_word=True) for phrase in phrases])
    frame = [(token, vocabulary[token]) for token in (specials.start, specials.end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{specials.start} $A {specials.end}", special_tokens=frame
    )
    make: Any = partial(PreTrainedTokenizerFast, tokenizer_object=tokenizer)
    return make(
        pad_token=specials.pad,
        unk_token=specials.unknown,
        cls_token=specials.start,
        sep_token=specials.end,
        bos_token=specials.bos,
        eos_token=specials.end,
        model_max_length=MAX_LENGTH,
        padding_side="right",
    )


@cache
def _words() -> tuple[str, ...]:
    """Return the words of all templates, collected from many texts, without names of things."""
    rng = np.random.default_rng(0)
    names = set(sprites())
    words: set[str] = set()
    split = pre_tokenizers.BertPreTokenizer()

    def learn(text: str) -> None:
        words.update(word for word, _ in split.pre_tokenize_str(text.lower()))

    for kind in KINDS:
        for _ in range(SAMPLES):
            question = draw("train", kind, rng)[1]
            learn(question.text)
            learn(question.answer)
    for _ in range(SAMPLES):
        for caption in captions_of(draw_scene("train", rng)):
            learn(caption)
        for plan in STATEMENTS.values():
            learn(plan(bool(rng.random() < 0.5), rng).text)
    parts = {part for name in names if " " in name for part in name.split()}
    return tuple(sorted(words - names - parts))
