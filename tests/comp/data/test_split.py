"""The split of a user's examples: by picture, whole, reproducible, and refused where it says nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comp.data.example import Example, PairExample
from comp.data.loading import load_task_data
from comp.data.split import (
    HELD_OUT,
    LEAST_EXAMPLES,
    Item,
    Split,
    fingerprint_of,
    items_of,
    split_items,
    warnings_of,
)
from comp.errors import CompExportError


def item(picture, question="what?", answer="that"):
    return Item((f"/data/{picture}",), (str(picture),), (question, answer))


@st.composite
def questions(draw):
    """Questions about pictures, some of them about two pictures, in any order."""
    pictures = draw(st.integers(3, 60))
    count = draw(st.integers(max(LEAST_EXAMPLES, pictures), 200))
    rng = random.Random(draw(st.integers(0, 2**32)))
    of = [*range(pictures), *(rng.randrange(pictures) for _ in range(count - pictures))]
    rng.shuffle(of)
    return [item(picture, f"question {number}") for number, picture in enumerate(of)]


def named(items, indices):
    return [items[index] for index in indices]


@given(questions(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_by_picture_and_cover_everything(items, seed):
    parts = split_items(items, seed)
    everything = (*parts.train, *parts.validation, *parts.test)
    assert sorted(everything) == list(range(len(items)))
    pictures = [
        {picture for each in named(items, indices) for picture in each.pictures}
        for indices in (parts.train, parts.validation, parts.test)
    ]
    assert all(pictures)
    assert sum(map(len, pictures)) == len(set.union(*pictures))


@given(questions(), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_seed_decides_and_the_order_of_the_file_does_not(items, seed, rng):
    parts = split_items(items, seed)
    assert split_items(items, seed) == parts
    shuffled = items.copy()
    rng.shuffle(shuffled)
    other = split_items(shuffled, seed)
    for part in ("train", "validation", "test"):
        assert named(shuffled, getattr(other, part)) == named(items, getattr(parts, part))


def test_another_seed_gives_another_split():
    items = [item(number) for number in range(100)]
    assert set(split_items(items, 0).test) != set(split_items(items, 1).test)


@pytest.mark.parametrize("each", [1, 3, 7])
def test_a_tenth_is_held_out_for_each(each):
    items = [item(picture, str(number)) for picture in range(200) for number in range(each)]
    parts = split_items(items)
    for held_out in (parts.validation, parts.test):
        assert len(items) // HELD_OUT <= len(held_out) < len(items) // HELD_OUT + each


def test_most_questions_of_one_picture_train():
    items = [item("one", str(number)) for number in range(60)]
    items += [item(number) for number in range(40)]
    parts = split_items(items)
    assert set(range(60)) <= set(parts.train)
    assert len(parts.test) == len(parts.validation) == 10


def test_statements_that_share_a_picture_stay_together():
    chain = [
        Item((f"{n}", f"{n + 1}"), (f"{n}", f"{n + 1}"), (f"statement {n}", "True"))
        for n in range(30)
    ]
    apart = [item(f"other {number}") for number in range(60)]
    parts = split_items([*chain, *apart])
    of = {index: part for part in ("train", "validation", "test") for index in getattr(parts, part)}
    assert len({of[index] for index in range(30)}) == 1


def test_too_little_data_is_refused_with_the_least_number():
    with pytest.raises(CompExportError, match=r"39 examples are too few .* at least 40"):
        split_items([item(number) for number in range(39)])
    with pytest.raises(CompExportError, match=r"2 separate pictures cannot .* at least 3 pictures"):
        split_items([item(number % 2, str(number)) for number in range(80)])
    assert split_items([item(number % 3, str(number)) for number in range(80)])


def test_small_parts_are_warned_of():
    items = [item(number) for number in range(80)]
    few, pictures = warnings_of(Split.of(items, split_items(items), 0))
    assert "only 8 examples test" in few
    assert "up to ±35 points; 1,000 examples in all would leave 100" in few
    assert "the validation part is about 8 pictures only" in pictures
    items = [item(number) for number in range(1000)]
    assert warnings_of(Split.of(items, split_items(items), 0)) == []


def test_pictures_in_memory_are_known_by_their_pixels():
    pictures = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(20)]
    examples = [Example(pictures[n % 20].copy(), f"{n}?", "that", "kind") for n in range(60)]
    items = items_of(examples)
    assert len({each.pictures for each in items}) == 20
    sizes = Image.new("RGB", (2, 8)), Image.new("RGB", (8, 2)), Image.new("RGB", (4, 4))
    assert len({items_of([Example(each, "", "", "")])[0].pictures for each in sizes}) == 3
    pair = PairExample((pictures[0], pictures[1]), "both are red", True, "kind")
    assert items_of([pair])[0].pictures == (*items[0].pictures, *items[1].pictures)


def test_pictures_of_a_file_are_known_by_where_they_are(tmp_path):
    """A link to a picture is that picture; another folder with the same names is the same data."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        Image.new("RGB", (4, 4)).save(folder / "a.png")
        (folder / "b.png").symlink_to("a.png")
        lines = [f'{{"image": "{n}.png", "question": "what?", "answer": "{n}"}}' for n in "ab"]
        (folder / "mine.jsonl").write_text("\n".join(lines))
    one, two = (
        items_of(load_task_data("question", folder / "mine.jsonl"), folder)
        for folder in (first, second)
    )
    assert one[0].pictures == one[1].pictures != two[0].pictures
    assert fingerprint_of(one) == fingerprint_of(two)


@given(questions())
@settings(max_examples=20, deadline=None)
def test_the_fingerprint_changes_with_the_data(items):
    whole = fingerprint_of(items)
    assert fingerprint_of(items[1:]) != whole
    assert fingerprint_of([*items[1:], items[0]]) != whole
    assert fingerprint_of([item("new"), *items[1:]]) != whole


def test_the_file_is_read_as_written_and_refused_if_damaged(tmp_path):
    items = [item(number) for number in range(50)]
    split = Split.of(items, split_items(items), 0, data="/data/mine.jsonl")
    path = tmp_path / "split.json"
    split.save(path)
    assert Split.load(path) == split
    assert sorted((*split.indices("train"), *split.validation, *split.test)) == list(range(50))
    text = path.read_text()
    damaged = {
        '"version":1': ('"version":2', "of version 2"),
        '"test":[': ('"test":[99,', "the numbers of indices"),
        f'"test":[{split.test[0]},': ('"test":[99,', "an index occurs twice, or is not from 0"),
        '"examples":{"train":40,': ('"examples":{', "examples are counted"),
    }
    for old, (new, message) in damaged.items():
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CompExportError, match=message):
            Split.load(path)
