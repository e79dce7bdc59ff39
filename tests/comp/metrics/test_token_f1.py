"""Token F1: cases by hand, as SQuAD's evaluation program scores them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.metrics.token_f1 import are_long, token_f1, tokens_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The red bus.", ["red", "bus"]),
        ("a man, an  umbrella\nand THE sea", ["man", "umbrella", "and", "sea"]),
        ("t-shirt", ["tshirt"]),
        ("anthem", ["anthem"]),
        ("the", []),
    ],
)
def test_words_are_those_of_squad(text, words):
    assert tokens_of(text) == words


@pytest.mark.parametrize(
    ("answer", "prediction", "score"),
    [
        ("a red bus on the street", "The red bus, on a street!", 1.0),
        ("a red bus", "a green car", 0.0),
        # Two of three words are right, two of four are there: P 2/3, R 2/4.
        ("red bus near trees", "red bus parked", 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        # A repeated word counts once if the reference has it once: P 1/3, R 1.
        ("bus", "bus bus bus", 0.5),
        ("bus", "", 0.0),
        ("the", "", 1.0),
    ],
)
def test_scores_by_hand(answer, prediction, score):
    assert token_f1(answer, prediction) == pytest.approx(score)


@given(st.text(max_size=40), st.text(max_size=40))
def test_f1_is_symmetric_and_one_for_itself(first, second):
    assert token_f1(first, first) == 1
    assert 0 <= token_f1(first, second) == token_f1(second, first) <= 1


def test_answers_are_long_by_their_median():
    assert not are_long(["red", "on the left", "a very long answer of many words"])
    assert are_long(["red", "to the left side", "a very long answer of many words"])
    assert not are_long([])
