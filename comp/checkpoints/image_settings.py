"""Settings of the steps from a picture to pixel values, the same for every image processor class.

Each class of transformers interprets the fields of its file in its own way.
``comp.checkpoints.image_processor`` converts them to these settings; manifests of artifacts contain them.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_TILES = 1024
LONGEST = 1 << 15  # longest edge of a setting, in pixels
Edge = Annotated[int, Field(gt=0, le=LONGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSize(_Settings):
    """The size that a picture is resized to, in pixels.

    Either ``height`` and ``width``; or ``shortest_edge``, with the longer edge at most ``longest_edge``; or
    as large as ``max_height`` and ``max_width`` allow.
    """

    shortest_edge: Edge | None = None
    longest_edge: Edge | None = None
    height: Edge | None = None
    width: Edge | None = None
    max_height: Edge | None = None
    max_width: Edge | None = None


class CropSize(_Settings):
    height: Edge
    width: Edge


class Tiles(_Settings):
    """Cutting into square tiles (``comp.checkpoints.tiling``), by one of two rules.

    Attributes:
        longest_edge: of Idefics3 and SmolVLM: first the longer edge of a picture is resized to this, in
            pixels.
        fewest, most: of InternVL: bounds of the number of tiles; their rows and columns are those whose
            aspect ratio is nearest to the picture's.
        edge: of a tile, in pixels.
        splits: whether a picture is cut; otherwise it is one tile.
    """

    longest_edge: Edge | None = None
    fewest: Annotated[int, Field(ge=1, le=MOST_TILES)] = 1
    most: Annotated[int, Field(ge=1, le=MOST_TILES)] | None = None
    edge: Edge
    splits: bool = True

    @model_validator(mode="after")
    def _has_one_rule(self) -> "Tiles":
        if (self.longest_edge is None) == (self.most is None):
            raise ValueError("longest_edge or most, one of them")
        if self.most is not None and self.fewest > self.most:
            raise ValueError(f"fewest {self.fewest} is more than most {self.most}")
        return self


class ImageProcessing(_Settings):
    """The steps in their order, with transformers' names.

    Attributes:
        do_convert_rgb: whether the processor converts to RGB; pictures are read as RGB in any case.
        do_pad: first step: centre the picture on a square of the mean colour (``LlavaImageProcessor``).
        resample: Pillow's number of the filter.
        do_center_crop: crop to ``crop_size`` (required then), black where the picture is smaller.
        image_mean, image_std: one value for each channel, after rescaling.
        pad_size: last step: pad with zeros on the right and below up to this size.
        tiles: cut the picture into tiles in place of resizing and cropping it; ``size`` is that of a tile.
    """

    do_convert_rgb: bool = True
    do_pad: bool = False
    do_resize: bool = True
    size: ImageSize
    resample: int = Field(default=3, ge=0, le=5)
    do_center_crop: bool = True
    crop_size: CropSize | None = None
    do_rescale: bool = True
    rescale_factor: Finite = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[Finite, ...] = Field(min_length=3, max_length=3)
    image_std: tuple[Finite, ...] = Field(min_length=3, max_length=3)
    pad_size: CropSize | None = None
    tiles: Tiles | None = None

    @property
    def crop(self) -> CropSize | None:
        """The size of the centre crop; ``None`` without cropping."""
        return self.crop_size if self.do_center_crop else None

    @property
    def output(self) -> tuple[int, int] | None:
        """Height and width of every result in pixels; ``None`` if they depend on the picture."""
        fixed = self.pad_size or self.crop
        if fixed is not None:
            return fixed.height, fixed.width
        size = self.size
        if not self.do_resize:
            return None
        if size.shortest_edge is not None:
            edge = min(size.shortest_edge, size.longest_edge or size.shortest_edge)
            return (edge, edge) if self.do_pad else None
        if size.height is not None and size.width is not None:
            return size.height, size.width
        return None
