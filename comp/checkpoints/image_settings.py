"""The steps from a picture to pixel values, in settings that say the same for every class.

The image processor classes of transformers read the fields of their files each in its own way.
``comp.checkpoints.image_processor`` makes these settings of them; artifacts carry them in their manifest.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LONGEST = 1 << 15  # pixels of an edge that a setting may name
Edge = Annotated[int, Field(gt=0, le=LONGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSize(_Settings):
    """The size that a picture is resized to.

    Exactly ``height`` and ``width``; or the shorter edge, with the longer one at most
    ``longest_edge``; or as large as ``max_height`` and ``max_width`` allow.
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


class ImageProcessing(_Settings):
    """The steps in their order, named as transformers names them.

    Attributes:
        do_convert_rgb: whether the processor does it; pictures are read as RGB in any case.
        do_pad: first of all, centre on a square of the mean colour (``LlavaImageProcessor``).
        resample: Pillow's number of the filter.
        do_center_crop: to ``crop_size``, black where the picture is smaller; needs it.
        image_mean, image_std: of the three channels, after rescaling.
        pad_size: last of all, zeros to the right and below up to this size.
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

    @property
    def crop(self) -> CropSize | None:
        """The size that is cut out of the middle."""
        return self.crop_size if self.do_center_crop else None

    @property
    def output(self) -> tuple[int, int] | None:
        """Height and width of what comes of every picture; none when they depend on the picture."""
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
