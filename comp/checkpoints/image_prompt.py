"""Write the words and tokens that stand for a picture in a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from comp.checkpoints.tiling import Grid
from comp.errors import CompExportError


class _Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MarkedTiles(_Words):
    """The words around the tiles of a picture in an Idefics3 or a SmolVLM: each names its row and column.

    Source: ``Idefics3Processor.replace_image_token`` of transformers.

    Attributes:
        around: token before each tile and after the last one.
        whole: token of the whole picture.
    """

    kind: Literal["idefics3"] = "idefics3"
    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    def of(self, grid: Grid, image_token: str) -> str:
        """Return the text of one picture, with ``image_token`` once for each tile."""
        text = ""
        for row in range(1, grid.rows + 1):
            for column in range(1, grid.columns + 1):
                text += f"{self.around}<row_{row}_col_{column}>{image_token}"
            text += "\n"
        first = "\n" if grid.rows else ""
        return f"{text}{first}{self.around}{self.whole}{image_token}{self.around}"

    def words(self, grid: Grid) -> Iterator[str]:
        """Yield the tokens of one picture that the tokenizer must know."""
        yield from (self.around, self.whole)
        for row in range(1, grid.rows + 1):
            for column in range(1, grid.columns + 1):
                yield f"<row_{row}_col_{column}>"


class FramedTiles(_Words):
    """The words around all tiles of a picture in an InternVL.

    Source: ``InternVLProcessor.replace_image_token`` of transformers.

    Attributes:
        before, after: tokens before the first tile and after the last one.
    """

    kind: Literal["internvl"] = "internvl"
    before: str = "<img>"
    after: str = "</img>"

    def of(self, grid: Grid, image_token: str) -> str:
        """Return the text of one picture, with ``image_token`` once for each tile."""
        return f"{self.before}{image_token * grid.tiles}{self.after}"

    def words(self, grid: Grid) -> Iterator[str]:
        """Yield the tokens of one picture that the tokenizer must know."""
        del grid
        yield from (self.before, self.after)


ImagePrompt = Annotated[MarkedTiles | FramedTiles, Field(discriminator="kind")]
PROMPTS: Mapping[str, MarkedTiles | FramedTiles] = {
    "smolvlm": MarkedTiles(),
    "idefics3": MarkedTiles(),
    "internvl": FramedTiles(),
}
"""How a picture is written, by name of the family; in other families it is the image token alone."""


def with_tiles(
    text: str, image_token: str, prompt: ImagePrompt | None, grids: Sequence[Grid]
) -> str:
    """Return a rendered prompt with the text of each picture in place of its image token.

    Args:
        text: the prompt, with ``image_token`` once for each picture.
        image_token: the token.
        prompt: how a picture is written; ``None``: the token alone.
        grids: tiles of each picture, in order.

    Raises:
        CompExportError: the numbers of image tokens and of pictures differ.
    """
    parts = text.split(image_token)
    if prompt is None:
        return text
    if len(parts) != len(grids) + 1:
        raise CompExportError(
            f"the prompt shows {image_token} {len(parts) - 1} times for {len(grids)} pictures: leave "
            f"{image_token} out of the words"
        )
    written = [prompt.of(grid, image_token) for grid in grids]
    return "".join(part + more for part, more in zip(parts, [*written, ""], strict=True))
