"""Score long answers by the words that they share with the reference: token F1 of SQuAD.

Follows the normalisation and the count of SQuAD's evaluation program (Rajpurkar et al., EMNLP 2016, section
6.1; https://rajpurkar.github.io/SQuAD-explorer/). Exact match is near zero for answers of more than a few
words, and ANLS of DocVQA scores spelling, not wording: it is zero for an answer in other words.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import median

SHORT = 3  # words: up to this median of the references, exact match is the metric
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def tokens_of(answer: str) -> list[str]:
    """Return the words of an answer: in lower case, without punctuation and English articles."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def token_f1(answer: str, prediction: str) -> float:
    """F1 of the words of a prediction, in [0, 1]: harmonic mean of precision and recall.

    Words are counted as often as they occur. If one of both has no words, 1 if the other has none either,
    else 0.
    """
    wanted, given = tokens_of(answer), tokens_of(prediction)
    if not wanted or not given:
        return float(wanted == given)
    shared = (Counter(wanted) & Counter(given)).total()
    return 2 * shared / (len(wanted) + len(given))


def are_long(answers: Sequence[str]) -> bool:
    """Whether references have more than three words in the median; then token F1 is the metric."""
    return bool(answers) and median(len(answer.split()) for answer in answers) > SHORT
