"""CIDEr-D, the consensus of a caption with its references (Vedantam et al., CVPR 2015, section 5).

The packages that have it bring a Java tokenizer or a stack of audio models along. Words here are runs of
letters, digits, apostrophes and hyphens in lower case; punctuation counts for nothing, as with theirs.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 4  # n-grams
SIGMA = 6.0  # of the penalty on lengths, in words
SCALE = 10.0
_WORD = re.compile(r"[\w'-]*\w[\w'-]*")
Grams = tuple[str, ...]


@dataclass(frozen=True)
class _Sentence:
    words: int
    weights: tuple[dict[Grams, float], ...]  # of the n-grams of each length
    norms: tuple[float, ...]


def words_of(caption: str) -> list[str]:
    """The words of a caption."""
    return _WORD.findall(caption.lower())


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, at most 10; their mean is that of the set (often printed times 100).

    How rare an n-gram is, is known from the references themselves, by pictures that have it: scores of
    different sets of pictures cannot be compared.

    Args:
        captions: one a picture.
        references: of each picture at least one.

    Raises:
        ValueError: fewer than two pictures (nothing is rare), counts that differ, no reference.
    """
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions for {len(references)} sets of references")
    if len(captions) < 2:
        raise ValueError("CIDEr needs at least two pictures: it weighs words by their rarity")
    if not all(references):
        raise ValueError("a picture without references cannot be scored")
    counted = [[_grams(words_of(reference)) for reference in each] for each in references]
    seen_in: Counter[Grams] = Counter()
    for picture in counted:
        seen_in.update({gram for grams in picture for gram in grams})
    rarity = _Rarity(seen_in, len(captions))
    scores = []
    for caption, picture in zip(captions, counted, strict=True):
        said = rarity.weigh(_grams(words_of(caption)))
        alike = [_similarity(said, rarity.weigh(grams)) for grams in picture]
        scores.append(SCALE * sum(alike) / len(alike))
    return scores


@dataclass(frozen=True)
class _Rarity:
    seen_in: Counter[Grams]
    pictures: int

    def weigh(self, grams: Counter[Grams]) -> _Sentence:
        weights: tuple[dict[Grams, float], ...] = tuple({} for _ in range(LONGEST))
        for gram, count in grams.items():
            rare = math.log(self.pictures / max(1, self.seen_in[gram]))
            weights[len(gram) - 1][gram] = count * rare
        norms = tuple(math.sqrt(sum(w * w for w in each.values())) for each in weights)
        words = sum(count for gram, count in grams.items() if len(gram) == 1)
        return _Sentence(words, weights, norms)


def _grams(words: Sequence[str]) -> Counter[Grams]:
    """All n-grams of up to four words, counted."""
    return Counter(
        tuple(words[first : first + length])
        for length in range(1, LONGEST + 1)
        for first in range(len(words) - length + 1)
    )


def _similarity(said: _Sentence, reference: _Sentence) -> float:
    """Mean over lengths of the clipped cosine, less where the captions are of different length."""
    total = 0.0
    for mine, theirs, norm, other in zip(
        said.weights, reference.weights, said.norms, reference.norms, strict=True
    ):
        if norm and other:
            shared = sum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs)
            total += shared / (norm * other)
    gap = said.words - reference.words
    return total / LONGEST * math.exp(-(gap**2) / (2 * SIGMA**2))
