"""Answers are scored by exact match, or by token F1 where the references are long; exact match stays."""

from types import SimpleNamespace

import pytest

from comp.data.example import Example
from serve.evaluation.questions import EXACT, LONG, LONG_METRIC, evaluate
from serve.generation.options import GenerationOptions


class Echo:
    """An engine that answers with its question."""

    def generate_batch(self, requests, options, batch_size):
        return [SimpleNamespace(text=question) for _, question in requests]


def evaluated(*pairs):
    examples = [
        Example(None, said, answer, kind)
        for said, answer, kind in pairs  # the picture is not read
    ]
    return evaluate(Echo(), examples, GenerationOptions())


def test_short_answers_are_right_or_wrong():
    result = evaluated(("red", "Red.", "colour"), ("a fox", "fox", "animal"))
    assert (result.metric, result.whole) == (None, "all")
    assert result.overall.to_dict()["right"] == 1
    assert {kind: each.to_dict()["right"] for kind, each in result.by_kind.items()} == {
        "colour": 1,
        "animal": 0,
    }


def test_long_answers_share_words_and_exact_match_is_listed():
    result = evaluated(
        ("a red bus in the street", "A red bus in the street.", "scene"),
        ("a red bus", "a red bus near tall trees", "scene"),  # P 1, R 2/5
        ("nothing", "two people on a bench", "people"),
    )
    assert (result.metric, result.whole) == (LONG_METRIC, LONG)
    assert result.overall.to_dict()["accuracy"] == pytest.approx((1 + 4 / 7 + 0) / 3)
    assert result.by_kind["scene"].to_dict()["accuracy"] == pytest.approx((1 + 4 / 7) / 2)
    assert result.by_kind[EXACT].to_dict() | {"ci95": None} == {
        "accuracy": pytest.approx(1 / 3),
        "ci95": None,
        "n": 3,
        "right": 1,
    }
