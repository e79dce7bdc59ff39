"""Compute VQA accuracy as its authors do: normalised answers, ten annotators, three agreeing suffice.

Follows the rules of https://visualqa.org/evaluation.html with the tables of its evaluation code. No
maintained package has them without a training framework.
"""

import re
from collections.abc import Sequence

ENOUGH = 3  # annotators who must give an answer for it to score 1
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# With all apostrophes; a spelling that lacks one of them is the same word.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def _spellings() -> dict[str, str]:
    """Map the spellings that lack one apostrophe to their contractions."""
    spellings = {}
    for word in CONTRACTIONS.split():
        for place, letter in enumerate(word):
            if letter == "'":
                spellings[word[:place] + word[place + 1 :]] = word
    return spellings


_SPELLINGS = _spellings()


def normalise_vqa(answer: str) -> str:
    """Normalise an answer: no punctuation, periods or articles, numbers as digits, full contractions.

    Punctuation next to a space, or anywhere in an answer with a comma between digits, is removed; elsewhere
    it becomes a space (``"black/white"``: two words; ``"1,000"``: one).
    """
    answer = " ".join(answer.split())
    joins = _DIGITS_AROUND_COMMA.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        beside = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside or joins else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split())
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of an answer in [0, 1]: min(1, annotators who gave it / 3), mean over leave-one-outs.

    Both sides are normalised. A single reference answer gives 1 or 0.

    Args:
        prediction: the answer to score.
        answers: of the annotators; VQAv2 has ten.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("no answers to compare with")
    answer_given = normalise_vqa(prediction)
    given = [normalise_vqa(answer) == answer_given for answer in answers]
    if len(given) == 1:
        return float(given[0])
    shares = (min(1.0, (sum(given) - mine) / ENOUGH) for mine in given)
    return sum(shares) / len(given)
