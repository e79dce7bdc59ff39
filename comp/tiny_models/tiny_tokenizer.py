"""Tokenizer of tiny-llava and tiny-smolvlm: one token for a thing, letters for unknown words.

WordPiece over the words of EmojiScenes. Names of two words ("hot dog") are single added tokens, so that an
image patch can be trained to *be* the word for what it shows. Any other word is split into letters, so that
no prompt is refused.
"""

import string
from collections.abc import Sequence
from functools import partial
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

from comp.data.emoji_scenes.examples import draw
from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.sprites import sprites

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
NOTHING = "nothing"
EXTRA_WORDS = (
    "user",
    "assistant",
    NOTHING,
    "zero",
    "none",
    "a",
    "an",
    "and",
    "of",
    "in",
    "on",
    "no",
)
MODEL_MAX_LENGTH = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(markers: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build the tokenizer from the dataset's own words; the same words in the same order each time.

    Args:
        markers: further special tokens, the last ones.
    """
    phrases = [name for name in sprites() if " " in name]
    words = [*(name for name in sprites() if " " not in name), *EXTRA_WORDS, *_template_words()]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*words, *letters, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
    entries = list(dict.fromkeys([*SPECIAL_TOKENS, *pieces]))
    vocabulary = {word: index for index, word in enumerate(entries)}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(phrase, single_word=True) for phrase in phrases])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in markers]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    make: Any = partial(PreTrainedTokenizerFast, tokenizer_object=tokenizer)
    return make(
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=MODEL_MAX_LENGTH,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def _template_words() -> list[str]:
    """Return the words of all templates, collected from many questions, without names of things."""
    rng = np.random.default_rng(0)
    names = set(sprites())
    words: set[str] = set()
    split = pre_tokenizers.BertPreTokenizer()
    for kind in KINDS:
        for _ in range(250):
            _, question = draw("train", kind, rng)
            for phrase in (question.text, question.answer):
                words.update(word for word, _ in split.pre_tokenize_str(phrase.lower()))
    parts = {part for name in names if " " in name for part in name.split()}
    return sorted(words - names - parts)
