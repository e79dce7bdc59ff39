"""Paint a contact sheet: examples on one page, each with its text below."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from comp.data.example import Example, PairExample

PICTURE = 168
GAP = 16
BETWEEN = 4  # pixels between the pictures of a pair
FONT_SIZE = 13
LINE = 17
WRAP = 27  # characters of a line below a picture
TEXT_LINES = 5
PAPER, INK, ANSWER, FAINT = (255, 255, 255), (30, 30, 30), (0, 95, 160), (130, 130, 130)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Card:
    """Content of a cell: pictures side by side, and texts with their colours and most lines."""

    pictures: tuple[Image.Image, ...]
    words: tuple[tuple[str, Colour, int], ...]

    @property
    def width(self) -> int:
        return len(self.pictures) * (PICTURE + BETWEEN) - BETWEEN


def contact_sheet(examples: Sequence[Example | PairExample], columns: int = 6) -> Image.Image:
    """Paint ``examples`` in rows of ``columns``: picture (or two), kind, question or statement, answer.

    Text that does not fit ends in an ellipsis. A caption, without a question, may use the question's lines.

    Raises:
        ValueError: for no examples, or fewer than one column.
    """
    if not examples or columns < 1:
        raise ValueError(f"{len(examples)} examples in {columns} columns")
    cards = [_card(example) for example in examples]
    columns = min(columns, len(cards))
    rows = math.ceil(len(cards) / columns)
    cell = (max(card.width for card in cards) + GAP, PICTURE + TEXT_LINES * LINE + GAP)
    sheet = Image.new("RGB", (GAP + columns * cell[0], GAP + rows * cell[1]), PAPER)
    for place, card in enumerate(cards):
        row, column = divmod(place, columns)
        _paint(sheet, card, GAP + column * cell[0], GAP + row * cell[1])
    return sheet


def _card(example: Example | PairExample) -> _Card:
    kind = (example.kind, FAINT, 1)
    if isinstance(example, PairExample):
        truth = "true" if example.answer else "false"
        return _Card(example.images, (kind, (example.statement, INK, 2), (truth, ANSWER, 1)))
    if not example.question:
        return _Card((example.image,), (kind, (example.answer, ANSWER, 4)))
    question = (example.question, INK, 2)
    return _Card((example.image,), (kind, question, (example.answer, ANSWER, 2)))


def _paint(sheet: Image.Image, card: _Card, left: int, top: int) -> None:
    for number, picture in enumerate(card.pictures):
        small = picture.copy()
        small.thumbnail((PICTURE, PICTURE))
        sheet.paste(small, (left + number * (PICTURE + BETWEEN), top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    lines = [
        (line, colour)
        for text, colour, most in card.words
        for line in _fit(text, most, WRAP * len(card.pictures))
    ]
    for number, (line, colour) in enumerate(lines):
        draw.text((left, top + PICTURE + 2 + number * LINE), line, fill=colour, font=font)


def _fit(text: str, lines: int, width: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=lines, placeholder="…")
