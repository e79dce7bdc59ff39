"""The supported image processor classes of transformers: their names, defaults and differences.

A test compares the table with the classes. In all of them a missing field has the class's default, and
``null`` means "none", which switches a step off.
"""

from dataclasses import dataclass
from typing import Literal

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
SIDE = 224

# Fields of every class that do not affect the pixels.
HARMLESS = frozenset(
    (
        # names and records
        *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"),
        *("auto_map", "_valid_processor_keys", "transformers_version"),
        # format of arrays, and backend
        *("return_tensors", "data_format", "input_data_format", "device", "disable_grouping"),
        "use_fast",
        # not used for pixels by these classes
        *("image_seq_length", "size_divisor", "return_row_col_info", "video_sampling"),
    )
)
FIELDS = frozenset(
    (
        *("do_convert_rgb", "do_pad", "pad_size", "do_resize", "size", "default_to_square"),
        *("use_square_size", "resample", "do_center_crop", "crop_size"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    )
)

# Fields of classes that cut into tiles, by their rule.
TILE_FIELDS = {
    "longest_edge": frozenset(("max_image_size", "do_image_splitting")),
    "aspect_ratio": frozenset(("crop_to_patches", "min_patches", "max_patches")),
}


@dataclass(frozen=True)
class ImageClass:
    """Defaults and differences of a class.

    Attributes:
        name: class name without the suffix of a backend.
        size: default size.
        default_to_square: whether a ``size`` of one number is height and width, not the shorter edge.
        crop_size: default crop size; ``None`` if it does not crop by default.
        do_convert_rgb: default of that field.
        pads_to_square: whether ``do_pad`` centres on a square of the mean colour before resizing; in other
            classes it adds zeros up to ``pad_size`` as the last step.
        squares: whether the class has ``use_square_size``, which replaces any size by the default one.
        tile: default edge of a tile in pixels, of classes that cut pictures into tiles.
        tile_rule: what chooses their rows and columns.
    """

    name: str
    size: dict[str, int]
    default_to_square: bool = False
    crop_size: dict[str, int] | None = None
    resample: int = BICUBIC
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    do_convert_rgb: bool | None = True
    pads_to_square: bool = False
    squares: bool = False
    tile: int | None = None
    tile_rule: Literal["longest_edge", "aspect_ratio"] = "longest_edge"

    @property
    def fields(self) -> frozenset[str]:
        """Fields of the class that affect the pixels."""
        return FIELDS | TILE_FIELDS[self.tile_rule] if self.tile else FIELDS

    @property
    def do_center_crop(self) -> bool | None:
        return True if self.crop_size is not None else None


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


_SHORTEST = {"shortest_edge": SIDE}
CLASSES = {
    kind.name: kind
    for kind in (
        ImageClass("CLIPImageProcessor", _SHORTEST, crop_size=_square(SIDE), squares=True),
        ImageClass("LlavaImageProcessor", _SHORTEST, crop_size=_square(SIDE), pads_to_square=True),
        ImageClass("BlipImageProcessor", _square(384), default_to_square=True),
        ImageClass("BitImageProcessor", _SHORTEST, crop_size=_square(SIDE)),
        ImageClass("ChineseCLIPImageProcessor", _SHORTEST, crop_size=_square(SIDE)),
        ImageClass(
            "DeiTImageProcessor",
            _square(256),
            default_to_square=True,
            crop_size=_square(SIDE),
            image_mean=HALF,
            image_std=HALF,
            do_convert_rgb=None,
        ),
        ImageClass("SiglipImageProcessor", _square(SIDE), image_mean=HALF, image_std=HALF),
        ImageClass(
            "ViTImageProcessor",
            _square(SIDE),
            default_to_square=True,
            resample=BILINEAR,
            image_mean=HALF,
            image_std=HALF,
            do_convert_rgb=None,
        ),
        *(
            ImageClass(
                name,
                {"longest_edge": 4 * 364},
                resample=LANCZOS,
                image_mean=HALF,
                image_std=HALF,
                tile=364,
            )
            for name in ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
        ),
        ImageClass(
            "GotOcr2ImageProcessor",
            _square(384),
            default_to_square=True,
            tile=384,
            tile_rule="aspect_ratio",
        ),
    )
}


def class_named(name: str) -> ImageClass | None:
    """Return the class of a name, also with the suffix ``Fast`` or ``Pil``; ``None`` if unknown."""
    return CLASSES.get(name.removesuffix("Fast").removesuffix("Pil"))
