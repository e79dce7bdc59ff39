"""VQA accuracy, CIDEr and recall: hand-computed cases and the numbers of the original programs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comp.metrics.cider import cider, words_of
from comp.metrics.recall import ranks, recall_at
from comp.metrics.vqa_accuracy import normalise_vqa, vqa_accuracy

NORMALISED = {
    "The  Dog.": "dog",
    "yes, it is": "yes it is",
    "black/white": "black white",
    "1,000": "1000",
    "two": "2",
    "None": "0",
    "dont": "don't",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "twas": "'twas",
    "its": "its",
    "3.5 m": "3.5 m",
    "a.m.": "am",
    "t-shirt": "t shirt",
    "left - right": "left right",
    "what?\nthis!": "what this",
}


@pytest.mark.parametrize(("answer", "expected"), NORMALISED.items())
def test_answers_are_normalised_as_in_the_official_program(answer, expected):
    assert normalise_vqa(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_of_ten_annotators(agreeing, expected):
    """Three of ten agree: of the ten sets of nine, three have only two of them, which gives 0.9."""
    answers = ["The cat."] * agreeing + [f"other {n}" for n in range(10 - agreeing)]
    assert vqa_accuracy("cat", answers) == pytest.approx(expected)


def test_vqa_accuracy_of_one_answer_and_of_none():
    assert vqa_accuracy("two dogs", ["2 dogs"]) == 1.0
    assert vqa_accuracy("two dogs", ["2 cats"]) == 0.0
    with pytest.raises(ValueError, match="no answers"):
        vqa_accuracy("dog", [])


CAPTIONS = ["a red fox stands on the left.", "two dogs and a cat", "there is an apple"]
REFERENCES = [
    ["a fox on the left", "a red fox is on the left of the picture"],
    ["two dogs, one cat", "a cat and two dogs"],
    ["there is an apple and a pear", "an apple"],
]


def test_cider_equals_the_original_program():
    """Compare with pycocoevalcap 1.2 on the same text."""
    expected = [3.5515197025684184, 3.2750258482385455, 4.601338234569093]
    assert cider(CAPTIONS, REFERENCES) == pytest.approx(expected, rel=1e-12)


def test_cider_by_hand():
    """One word each, known from one picture of two: only single words count, a quarter of the scale."""
    assert cider(["dog", "cat"], [["dog"], ["cow"]]) == pytest.approx([2.5, 0.0])
    longer = cider(["dog dog", "cat"], [["dog"], ["cow"]])
    # Clipped: min(2, 1)·1 / (2·1), and a word too many.
    assert longer[0] == pytest.approx(2.5 * 0.5 * math.exp(-1 / 72))


@given(st.lists(st.sampled_from(("fox", "dog", "on", "left", "red")), min_size=4, max_size=12))
def test_a_reference_is_its_own_best_caption(words):
    caption = " ".join(words)
    others = [["something else entirely"], ["nothing like it here"]]
    best, *_ = cider([caption, "x", "y"], [[caption], *others])
    worse, *_ = cider([caption + " red", "x", "y"], [[caption], *others])
    assert best == pytest.approx(10.0)
    assert worse < best


def test_punctuation_is_removed():
    assert words_of("It's a T-shirt, isn't it? - Yes.") == [
        "it's",
        "a",
        "t-shirt",
        "isn't",
        "it",
        "yes",
    ]


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (["a"], [["a"]], "two pictures"),
        (["a", "b"], [["a"]], "2 captions for 1"),
        (["a", "b"], [["a"], []], "without references"),
    ],
)
def test_cider_refuses_bad_input(captions, references, message):
    with pytest.raises(ValueError, match=message):
        cider(captions, references)


def test_recall_by_hand():
    """Two images; the first has two texts, of which the better counts. Ties count as misses."""
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.3, 0.3]])
    of_images, of_texts = ranks(scores.numpy(), [0, 0, 1])
    assert of_images.tolist() == [0, 2]
    assert of_texts.tolist() == [1, 1, 1]
    assert [recall_at(of_images, depth) for depth in (1, 2, 3)] == [1, 1, 2]


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 1000))
def test_recall_against_sorting(images, texts_each, seed):
    scores = torch.rand(images, images * texts_each, generator=torch.Generator().manual_seed(seed))
    owner = [image for image in range(images) for _ in range(texts_each)]
    of_images, of_texts = ranks(scores.numpy(), owner)
    for image in range(images):
        order = scores[image].argsort(descending=True).tolist()
        assert of_images[image] == min(order.index(t) for t, o in enumerate(owner) if o == image)
    for text, image in enumerate(owner):
        assert of_texts[text] == scores[:, text].argsort(descending=True).tolist().index(image)


def test_recall_refuses_bad_input():
    with pytest.raises(ValueError, match="image 1 has no text"):
        ranks(torch.rand(2, 2).numpy(), [0, 0])
    with pytest.raises(ValueError, match="for 1 texts"):
        ranks(torch.rand(2, 2).numpy(), [0])
    with pytest.raises(ValueError, match="for 0 texts"):
        ranks(torch.rand(2, 0).numpy(), [])
