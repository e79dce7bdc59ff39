"""A contact sheet: examples on one page, each with its question and answer below."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from comp.data.example import Example

PICTURE = 168
GAP = 16
FONT_SIZE = 13
LINE = 17
WRAP = 27  # characters of a line below a picture
TEXT_LINES = 5
PAPER, INK, ANSWER, FAINT = (255, 255, 255), (30, 30, 30), (0, 95, 160), (130, 130, 130)


def contact_sheet(examples: Sequence[Example], columns: int = 6) -> Image.Image:
    """Paint ``examples`` in rows of ``columns``: picture, kind, question, answer.

    Text that does not fit ends in an ellipsis.

    Raises:
        ValueError: for no examples, or fewer than one column.
    """
    if not examples or columns < 1:
        raise ValueError(f"{len(examples)} examples in {columns} columns")
    columns = min(columns, len(examples))
    rows = math.ceil(len(examples) / columns)
    cell = (PICTURE + GAP, PICTURE + TEXT_LINES * LINE + GAP)
    sheet = Image.new("RGB", (GAP + columns * cell[0], GAP + rows * cell[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for place, example in enumerate(examples):
        row, column = divmod(place, columns)
        left, top = GAP + column * cell[0], GAP + row * cell[1]
        picture = example.image.copy()
        picture.thumbnail((PICTURE, PICTURE))
        sheet.paste(picture, (left, top))
        lines = [
            (example.kind, FAINT),
            *((line, INK) for line in _fit(example.question, 2)),
            *((line, ANSWER) for line in _fit(example.answer, 2)),
        ]
        for number, (line, colour) in enumerate(lines):
            draw.text((left, top + PICTURE + 2 + number * LINE), line, fill=colour, font=font)
    return sheet


def _fit(text: str, lines: int) -> list[str]:
    return textwrap.wrap(text, WRAP, max_lines=lines, placeholder="…")
