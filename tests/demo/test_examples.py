"""The page's examples are of the test split, reproducible, and correctly labelled."""

import pytest

from comp.data.emoji_scenes.captions import names_in
from comp.data.emoji_scenes.statements import EmojiStatements
from demo import examples
from demo.examples import (
    PAIRS,
    QUESTIONS_EACH,
    page_captions,
    page_examples,
    page_gallery,
    page_pairs,
)


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (page_examples, lambda result: [each.questions for each in result]),
        (page_captions, lambda result: [each.captions for each in result]),
        (page_pairs, lambda result: [each.statements for each in result]),
        (page_gallery, lambda result: result.captions),
    ],
)
def test_examples_are_reproducible(offered, words):
    first = words(offered())
    offered.cache_clear()
    assert words(offered()) == first


def test_questions_have_their_answers():
    first = page_examples()[0]
    assert all(len(example.questions) == QUESTIONS_EACH for example in page_examples())
    text, answer = first.questions[0]
    assert first.answer_to(f" {text} ") == answer
    assert first.answer_to("something else?") is None


def test_statements_have_the_label_shown_on_the_page():
    """Check against the objects of both scenes, for every wording."""
    for index, pair in zip(PAIRS, page_pairs(), strict=True):
        scenes, own = EmojiStatements("test").scenes(index)
        assert pair.statements[0] == (own.text, own.answer)
        first, second = ([thing.name for thing in scene.things] for scene in scenes)
        checked = 0
        for text, truth in examples.statements_about(scenes).items():
            (name,) = names_in(text)
            left, right = first.count(name), second.count(name)
            if text.startswith("exactly one"):
                expected = bool(left) != bool(right)
            elif text.startswith("both pictures or neither"):
                expected = bool(left) == bool(right)
            else:
                assert text.endswith("appears equally often in both pictures.")
                expected = left == right
            assert truth == expected, text
            checked += 1
        assert checked >= 2
        assert pair.truth_of(f" {own.text} ") is own.answer
        assert pair.truth_of("both pictures are blue.") is None
    offered = [truth for pair in page_pairs() for _, truth in pair.statements]
    assert 0.3 < sum(offered) / len(offered) < 0.7


def test_thumbnails_of_pairs_show_both_pictures():
    pair = page_pairs()[0]
    both = pair.side_by_side
    width = pair.images[0].width
    assert both.crop((0, 0, width, width)).tobytes() == pair.images[0].tobytes()
    assert both.crop((both.width - width, 0, both.width, width)).tobytes() == (
        pair.images[1].tobytes()
    )


def test_each_picture_of_the_gallery_has_one_caption():
    gallery = page_gallery()
    assert len(set(gallery.captions)) == len(gallery.pictures) == examples.GALLERY
    names = [names_in(caption) for caption in gallery.captions]
    assert len({tuple(sorted(each.elements())) for each in names}) == examples.GALLERY
    assert gallery.place_of(f"  {gallery.captions[5]} ") == 5
    assert gallery.place_of("a picture of nothing.") is None
