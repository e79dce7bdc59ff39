"""Questions about pictures for servers: no two pictures alike, in requests or in rounds."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from comp.data.embedded import embedded_examples
from random_llava import prompt_of

COARSE = 12  # pixels of noise on a side, before it is scaled: coarse enough to survive resizing


@dataclass(frozen=True)
class Asked:
    """A question of one turn; ``answer`` is the right one, if there is any."""

    content: list[dict[str, Any]]
    answer: str | None = None


def content_of(picture: Image.Image, text: str) -> list[dict[str, Any]]:
    """The parts of a message: a picture as PNG, and words."""
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]


def scenes(block: int, count: int) -> list[Asked]:
    """Questions of EmojiScenes' test part; every block has other scenes."""
    first = block * count
    examples = embedded_examples("question", "test", first + count)
    asked = []
    for number in range(first, first + count):
        example = examples[number]
        asked.append(Asked(content_of(example.image, example.question), example.answer))
    return asked


def noise(block: int, count: int, side: int, text_tokens: int) -> list[Asked]:
    """Pictures of noise with ``side`` pixels, and words of ``random_llava``'s vocabularies.

    Every prompt has ``text_tokens`` tokens beside the picture's, with those of the template.
    """
    asked = []
    for number in range(block * count, (block + 1) * count):
        coarse = np.random.default_rng(number).integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        asked.append(Asked(content_of(picture, prompt_of(text_tokens, number))))
    return asked


@dataclass(frozen=True)
class Questions:
    """The source of all blocks of a measurement: scenes, or noise of ``side`` pixels."""

    count: int
    side: int | None = None
    text_tokens: int = 64

    def block(self, number: int) -> Sequence[Asked]:
        """``count`` questions; no picture is in two blocks."""
        if self.side is None:
            return scenes(number, self.count)
        return noise(number, self.count, self.side, self.text_tokens)
