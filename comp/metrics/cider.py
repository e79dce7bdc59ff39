"""Compute CIDEr-D, the consensus of a caption with its references (Vedantam et al., CVPR 2015, section 5).

The packages that have it depend on a Java tokenizer or on audio models. Words are runs of letters, digits,
apostrophes and hyphens in lower case; punctuation is ignored, as in those packages.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the length penalty, in words
SCALE = 10.0
_WORD = re.compile(r"[\w'-]*\w[\w'-]*")
Grams = tuple[str, ...]


@dataclass(frozen=True)
class _Sentence:
    words: int
    weights: tuple[dict[Grams, float], ...]  # of the n-grams of each length
    norms: tuple[float, ...]


def words_of(caption: str) -> list[str]:
    """Return the words of a caption."""
    return _WORD.findall(caption.lower())


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return CIDEr-D of each caption, at most 10; the score of a set is the mean (often times 100).

    The rarity of n-grams is measured on the references, by the number of pictures that have them. Scores
    of different sets of pictures are therefore not comparable.

    Args:
        captions: one for each picture.
        references: at least one for each picture.

    Raises:
        ValueError: fewer than two pictures (rarity is undefined), different lengths, or no reference.
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
        candidate = rarity.weigh(_grams(words_of(caption)))
        alike = [_similarity(candidate, rarity.weigh(grams)) for grams in picture]
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
    """Count all n-grams of up to four words."""
    return Counter(
        tuple(words[first : first + length])
        for length in range(1, LONGEST + 1)
        for first in range(len(words) - length + 1)
    )


def _similarity(candidate: _Sentence, reference: _Sentence) -> float:
    """Mean of the clipped cosines over n-gram lengths, times a penalty on different caption lengths."""
    total = 0.0
    for mine, theirs, norm, other in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if norm and other:
            shared = sum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs)
            total += shared / (norm * other)
    gap = candidate.words - reference.words
    return total / LONGEST * math.exp(-(gap**2) / (2 * SIGMA**2))
