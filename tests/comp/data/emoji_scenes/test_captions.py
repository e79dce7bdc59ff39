"""Captions name the objects of a scene, and are scored by the objects that they name."""

from collections import Counter

import pytest

from comp.data.emoji_scenes.captions import (
    EmojiCaptions,
    article,
    captions_of,
    names_in,
    things_score,
)
from comp.data.emoji_scenes.scenes import Scene, Thing
from comp.data.emoji_scenes.splits import split_of


def test_captions_name_every_object_once():
    data = EmojiCaptions("test", 60)
    for index in range(60):
        result = data[index]
        assert 1 <= len(result.names) <= 5
        for caption in result.captions:
            assert names_in(caption) == Counter(result.names)
            assert caption.endswith(".")
        assert len(set(result.captions)) == 5
        assert split_of(data.scene(index)) == "test"
        assert result.captions == data[index].captions


def test_captions_have_the_expected_words():
    things = (
        Thing("fox", 140, 84, 40, 0),
        Thing("axe", 28, 28, 40, 0),
        Thing("hot dog", 57, 140, 40, 0),  # a pixel from the line between two places
    )
    plain, other, *_ = captions_of(Scene(things, 0))
    assert plain == "an axe at the top left, a hot dog and a fox at the right."
    assert other == f"there is {plain}"
    assert captions_of(Scene(things[:1], 0))[0] == "a fox at the right."


def test_articles_agree_with_the_noun():
    assert [article(name) for name in ("axe", "fox", "umbrella")] == ["an", "a", "an"]


@pytest.mark.parametrize(
    ("caption", "score"),
    [
        ("a fox and a cow.", (2, 2, 3)),
        ("A  FOX, a cow and a red apple.", (3, 3, 3)),
        ("a fox, a fox and a cow.", (2, 3, 3)),  # named twice, present once
        ("a green apple.", (0, 1, 3)),
        ("nothing.", (0, 0, 3)),
        ("a foxglove.", (0, 0, 3)),
    ],
)
def test_repeated_objects_are_counted(caption, score):
    assert things_score(caption, ["fox", "cow", "red apple"]) == score


def test_the_longest_of_overlapping_names_is_counted():
    assert names_in("a hot dog.") == Counter({"hot dog": 1})
    assert names_in("a dog and a hot dog.") == Counter({"dog": 1, "hot dog": 1})
