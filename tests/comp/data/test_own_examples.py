"""A user's own examples: anything with a length and an index, each checked when it is taken."""

import pytest
from PIL import Image

from comp import CompExportError, Example, PairExample
from comp.data.embedded import embedded_examples
from comp.data.example import CheckedExamples

PICTURE = Image.new("RGB", (8, 8))
GOOD = Example(PICTURE, "what?", "a square", "shape")


class Endless:
    """Has a length and an index alone; counts what is taken; refuses slices, and never ends by itself."""

    taken = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        assert isinstance(index, int)
        self.taken += 1
        return Example(PICTURE, "what?", str(index), "shape")


def test_slices_and_loops_need_only_a_length_and_an_index():
    source = Endless()
    checked = CheckedExamples.of("question", source)
    assert source.taken == 1  # the first tells the class
    some = checked[1:4]
    assert (len(some), source.taken) == (3, 1)
    assert [each.answer for each in some] == ["1", "2", "3"]
    assert [each.answer for each in checked[::2]] == ["0", "2", "4"]
    assert checked[-1].answer == "4"
    assert len(list(checked)) == 5
    with pytest.raises(IndexError):
        checked[5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", "example 1 is a str: give a comp.Example"),
        (Example("a.png", "what?", "a", "k"), "example 1 has a str for an image: open it with PIL"),
        (Example(PICTURE, "what?", None, "k"), "example 1 has the answer None: give text"),
    ],
)
def test_a_wrong_example_is_named(wrong, message):
    checked = CheckedExamples.of("question", [GOOD, wrong])
    with pytest.raises(CompExportError, match=message):
        checked[1]


def test_the_answer_of_a_statement_is_true_or_false():
    pair = PairExample((PICTURE, PICTURE), "both are squares", "yes", "shape")
    with pytest.raises(CompExportError, match="example 0 has the answer 'yes': give True or False"):
        CheckedExamples.of("statement", [pair])[0]


@pytest.mark.parametrize("task", ["question", "retrieval", "statement"])
def test_a_loop_over_embedded_examples_ends(task):
    assert len(list(embedded_examples(task, "test", 3))) == 3
