import pytest
from PIL import Image

from comp.data.emoji_scenes.contact_sheet import contact_sheet
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.statements import EmojiStatements
from comp.data.example import Example, PairExample


def test_contact_sheet_holds_every_example() -> None:
    examples = [EmojiScenes("test")[i] for i in range(5)]
    sheet = contact_sheet(examples, columns=3)
    assert sheet.size == (16 + 3 * 184, 16 + 2 * (168 + 85 + 16))
    for place, example in enumerate(examples):
        left, top = 16 + place % 3 * 184, 16 + place // 3 * 269
        assert sheet.crop((left, top, left + 168, top + 168)).tobytes() == example.image.tobytes()
        words = sheet.crop((left, top + 168, left + 168, top + 253))
        assert len(words.getcolors(10_000)) > 2


def test_contact_sheet_takes_long_text_and_odd_sizes() -> None:
    example = Example(Image.new("RGB", (900, 30), "blue"), "word " * 60, "x" * 300, "kind")
    assert contact_sheet([example], columns=9).size == (200, 285)
    with pytest.raises(ValueError, match="0 examples"):
        contact_sheet([])


def test_pairs_are_drawn_side_by_side_above_their_statement() -> None:
    examples = [EmojiStatements("test")[i] for i in range(3)]
    sheet = contact_sheet(examples, columns=2)
    assert sheet.size == (16 + 2 * (2 * 168 + 4 + 16), 16 + 2 * (168 + 85 + 16))
    for place, example in enumerate(examples):
        left, top = 16 + place % 2 * 356, 16 + place // 2 * 269
        for number, image in enumerate(example.images):
            start = left + number * 172
            shown = sheet.crop((start, top, start + 168, top + 168))
            assert shown.tobytes() == image.tobytes()


def test_true_and_false_are_distinguished() -> None:
    blank = Image.new("RGB", (20, 20))
    sheets = [
        contact_sheet([PairExample((blank, blank), "they differ.", answer, "kind")])
        for answer in (True, False)
    ]
    assert sheets[0].tobytes() != sheets[1].tobytes()


def test_a_caption_has_the_lines_of_question_and_answer() -> None:
    """Four lines of 27 letters: the last words of 100 letters are drawn too."""
    blank = Image.new("RGB", (20, 20))
    text = "a cat on a mat " * 6
    sheets = [
        contact_sheet([Example(blank, "", text + end, "caption")]) for end in ("here", "there")
    ]
    assert sheets[0].tobytes() != sheets[1].tobytes()
