"""Captions, verdicts and rankings as HTML: escaped, marked, and correct."""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.data.emoji_scenes.captions import names_in, things_score
from comp.data.emoji_scenes.sprites import sprites
from demo.cards.caption import CaptionFace, marked
from demo.cards.ranking import SHOWN, RankingFace
from demo.cards.verdict import VerdictFace
from demo.comparison import Side
from demo.gallery import RankedCandidates
from serve.engines.blip_judge import Judgement
from serve.generation.results import Generation, Timings, TowerKept
from tests.demo.test_cards import text_of

NAMES = list(sprites())[:8]
HOSTILE = "<img src=x onerror=alert(1)> {{a}} ${b}"


def caption(text):
    made = Generation(text, (1, 2), "eos", 1, 145, TowerKept({}), Timings(1, 2, 3, 4, 1))
    return Side("dense", "done", text, made)


def test_objects_are_marked_right_wrong_or_missed():
    face = CaptionFace(["fox", "magnet"])
    side = caption("A  Fox and a cow & <b>.")
    body = face.body(side)
    for kind, hint, name in (("right", "is there", "Fox"), ("wrong", "is not there", "cow")):
        shown = f'data-tip="{hint}" aria-description="{hint}">{name}</mark>'
        assert f'<mark class="ce-{kind} ce-tip" tabindex="0" {shown}' in body
    assert text_of(body) == "A Fox and a cow & <b>. missed: magnet"
    assert text_of(face.chip(side.result)) == "1 of 2 things, 1 wrong"
    right = caption("a magnet and a fox.")
    assert "missed" not in face.body(right)
    assert "ce-good" in face.chip(right.result)


def test_an_object_named_twice_is_right_once():
    assert marked("a fox and a fox", Counter(["fox"])).count("ce-right ") == 1
    assert marked("a fox and a fox", Counter(["fox"])).count("ce-wrong ") == 1
    assert marked("a fox and a fox", Counter(["fox", "fox"])).count("ce-right ") == 2


def test_the_prefix_of_a_caption_is_not_marked():
    face = CaptionFace(["fox", "magnet"], "there is a <fox> and")
    body = face.body(caption("a fox."))
    assert text_of(body) == "there is a <fox> and a fox. missed: magnet"
    assert "ce-right" not in body
    assert text_of(face.chip(caption("a magnet.").result)) == "1 of 1 things"


def test_nothing_is_marked_without_a_known_answer():
    face = CaptionFace()
    assert text_of(face.body(caption("a fox."))) == "a fox."
    assert face.chip(caption("a fox.").result) == ""
    assert "mark" not in CaptionFace(["fox"]).body(Side("dense", "working", "a fox"))


@given(
    chosen_names=st.lists(st.sampled_from(NAMES), max_size=5),
    there=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5),
)
def test_marks_agree_with_the_score(chosen_names, there):
    text = "you can see " + ", a ".join(chosen_names) + "."
    search = marked(text, Counter(there))
    right, named, total = things_score(text, there)
    assert search.count('class="ce-right ') == right
    assert search.count("<mark") == named
    assert text_of(search) == text
    missed = CaptionFace(there).body(caption(text)).partition("missed: ")[2].removesuffix("</p>")
    assert sum(names_in(missed).values()) == total - right


def medians(clocks):
    return tuple((clock.name, clock.median) for clock in clocks)


def judged(probability):
    return Side("dense", "done", result=Judgement(probability, TowerKept({}), Timings(1, 2, 4)))


@pytest.mark.parametrize(
    ("probability", "verdict", "number", "width"),
    [
        (0.932, "True", "93.2 %", "93.2%"),
        (0.2, "False", "20.0 %", "20.0%"),
        (0.5, "False", "50.0 %", "50.0%"),
    ],
)
def test_a_verdict_has_its_probability(probability, verdict, number, width):
    side = judged(probability)
    body = VerdictFace().body(side)
    assert text_of(body) == f"{verdict} probability of true {number}"
    assert f"width:{width}" in body
    assert VerdictFace().chip(side.result) == ""
    right = verdict == "True"
    assert text_of(VerdictFace(right).chip(side.result)) == "✓ right"
    assert text_of(VerdictFace(not right).chip(side.result)) == (
        f"✗ wrong: it is {str(not right).lower()}"
    )
    assert medians(VerdictFace().clocks([side.result])) == (
        ("pictures", 3),
        ("statement", 4),
        ("total", 7),
    )


def test_small_probabilities_are_not_shown_as_zero():
    assert "99.9 %" in VerdictFace().body(judged(0.99999))


def search(scores, candidates_ms=None):
    scores = np.array(scores, np.float32)
    order = np.argsort(-scores, kind="stable")
    return Side(
        "dense",
        "done",
        result=RankedCandidates(
            order, scores, TowerKept({}), 1.0, candidates_ms, 0.5, (30.0, 40.0, 35.0)
        ),
    )


def test_pictures_are_ranked_and_the_right_one_is_outlined():
    names = [f"a {n}" for n in range(8)]
    face = RankingFace(names, 3, [f"data:{n}" for n in range(8)])
    body = face.body(search([0, 5, 1, 4, 2, 3, -1, -2]))
    assert [body.index(f'src="data:{n}"') for n in (1, 3, 5, 4, 2, 0)] == sorted(
        body.index(f'src="data:{n}"') for n in range(6)
    )
    assert body.count("<li") == SHOWN
    (mark,) = [part for part in body.split("<li")[1:] if "ce-is-right" in part]
    assert 'src="data:3"' in mark
    share = math.exp(5) / sum(math.exp(x) for x in [0, 5, 1, 4, 2, 3, -1, -2])
    assert f"{100 * share:.1f} %" in text_of(body)
    assert text_of(face.chip(search([0, 5, 1, 4, 2, 3, -1, -2]).result)) == "✗ right one: 2 of 8"
    assert text_of(face.chip(search([0, 0, 0, 4, 0, 0, 0, 0]).result)) == "✓ right one first"


def test_captions_are_ranked_and_escaped():
    face = RankingFace([HOSTILE, "a fox"])
    body = face.body(search([1, 2]))
    assert text_of(body).startswith("1. a fox")
    assert HOSTILE in text_of(body)
    assert "<img" not in body
    assert face.chip(search([1, 2]).result) == ""


def test_new_captions_have_their_own_time():
    face = RankingFace(["a", "b"])
    assert medians(face.clocks([search([1, 2]).result])) == (
        ("embed picture", 1),
        ("ranking", 0.5),
        ("total", 1.5),
    )
    assert medians(face.clocks([search([1, 2], 2.0).result])) == (
        ("embed picture", 1),
        ("embed captions", 2),
        ("ranking", 0.5),
        ("total", 3.5),
    )


def test_the_main_clock_of_retrieval_is_the_embedding_of_pictures():
    """It is what pruning changes most."""
    pictures = RankingFace(["a", "b"], pictures=["data:0", "data:1"])
    for face, first in ((pictures, 35), (RankingFace(["a", "b"]), 1)):
        clocks = face.clocks([search([1, 2]).result])
        assert [clock.main for clock in clocks] == [True] + [False] * (len(clocks) - 1)
        assert clocks[0].median == first
    assert medians(pictures.clocks([]))[0] == ("embed pictures", None)


@given(st.lists(st.integers(-200, 60), min_size=1, max_size=30))
def test_shares_are_relative_to_all_candidates(scores):
    """This also holds where unmatched candidates have much lower scores."""
    result = search(scores).result
    assert result.shares.sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(result.scores[result.order]) <= 0).all()
    assert [result.rank(int(place)) for place in result.order] == list(range(1, len(scores) + 1))


def test_every_class_has_a_style():
    """Class names in the modules' HTML are in the style sheet, except those that only mark a place."""
    folder = Path(__file__).parents[2] / "demo"
    used = set()
    for path in folder.rglob("*.py"):
        for names in re.findall(r'class="([^"]*)"', path.read_text()):
            used |= set(re.findall(r"ce-[a-z-]*[a-z](?![a-z-]*\{)", names))
    assert {"ce-card", "ce-missed", "ce-share"} <= used
    styled = set(re.findall(r"\.(ce-[a-z-]+)", (folder / "style.css").read_text()))
    assert used - styled <= {"ce-final", "ce-measured", "ce-probability", "ce-bar-group"}
