"""Interpret the fields of an image processor's file as its class does.

A missing field has the class's default. ``null`` means "none", which switches a step off. The fields of a
step that is switched off are not read.
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from comp.checkpoints.image_classes import HARMLESS, ImageClass
from comp.checkpoints.image_settings import (
    LONGEST,
    MOST_TILES,
    CropSize,
    ImageProcessing,
    ImageSize,
    Tiles,
)
from comp.errors import CompExportError

REMEDY = "write what the model was trained with"
SIZES = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)
FILTERS = "0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming"
SMALLEST = 1e-30  # smallest standard deviation; float32 can hold it


class FieldReader:
    """Reads the fields of a file with the defaults and rules of their class."""

    def __init__(self, path: Path, kind: ImageClass, fields: Mapping[str, Any]) -> None:
        self._path = path
        self._kind = kind
        self._fields = fields

    def settings(self) -> ImageProcessing:
        """Return the settings that the fields mean.

        Raises:
            CompExportError: a field is unknown, or the class cannot use its value.
        """
        for name, value in self._fields.items():
            if name not in self._kind.fields and name not in HARMLESS and value is not None:
                remedy = "remove it, if the pixels are right without it"
                raise self._refused(name, "which is not known", remedy)
        kind = self._kind
        if kind.tile is not None:
            return self._tiled(kind.tile)
        resized = self._switch("do_resize", default=True)
        cropped = self._switch("do_center_crop", default=kind.do_center_crop)
        rescaled = self._switch("do_rescale", default=True)
        normalised = self._switch("do_normalize", default=True)
        padded = self._switch("do_pad", default=None)
        to_square = padded and kind.pads_to_square
        processing = ImageProcessing(
            do_convert_rgb=self._switch("do_convert_rgb", default=kind.do_convert_rgb),
            do_pad=to_square,
            do_resize=resized,
            size=self._size() if resized else ImageSize(),
            resample=self._filter() if resized else kind.resample,
            do_center_crop=cropped,
            crop_size=self._box("crop_size", kind.crop_size) if cropped else None,
            do_rescale=rescaled,
            rescale_factor=self._factor() if rescaled else 1 / 255,
            do_normalize=normalised,
            image_mean=self._mean(normalised, to_square),
            image_std=self._std() if normalised else kind.image_std,
            pad_size=self._box("pad_size", None) if padded and not to_square else None,
        )
        self._check(processing)
        return processing

    def _tiled(self, edge: int) -> ImageProcessing:
        """Return the settings of a class that cuts pictures into tiles; ``edge``: its default tile."""
        kind = self._kind
        for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if not self._switch(name, default=True):
                raise self._refused(
                    name, "and a picture is cut into tiles after it", "leave it out"
                )
        if self._switch("do_center_crop", default=None):
            raise self._refused("do_center_crop", "and tiles are not cropped", "leave it out")
        tiles = (
            self._by_aspect_ratio(edge)
            if kind.tile_rule == "aspect_ratio"
            else self._by_longest_edge(edge)
        )
        return ImageProcessing(
            size=ImageSize(height=tiles.edge, width=tiles.edge),
            resample=self._filter(),
            do_center_crop=False,
            rescale_factor=self._factor(),
            image_mean=self._mean(normalised=True, padded=False),
            image_std=self._std(),
            tiles=tiles,
        )

    def _by_longest_edge(self, edge: int) -> Tiles:
        return Tiles(
            longest_edge=self._longest_edge("size", self._kind.size),
            edge=self._longest_edge("max_image_size", {"longest_edge": edge}),
            splits=self._switch("do_image_splitting", default=True),
        )

    def _by_aspect_ratio(self, edge: int) -> Tiles:
        """Return the tiles of an InternVL, whose processor cuts them whatever ``crop_to_patches`` says."""
        self._switch("crop_to_patches", default=True)
        size = self._edges(
            "size", self._value("size", {"height": edge, "width": edge}), square=True
        )
        if set(size) != {"height", "width"} or size["height"] != size["width"]:
            raise self._refused(
                "size", "and tiles are squares: height and width of the same number"
            )
        fewest, most = (
            self._count(name, default)
            for name, default in (("min_patches", 1), ("max_patches", 12))
        )
        if fewest > most:
            raise self._refused("min_patches", f"and max_patches is {most}")
        return Tiles(fewest=fewest, most=most, edge=size["height"])

    def _count(self, name: str, default: int) -> int:
        value = self._value(name, default)
        if not _is_count(value) or not 1 <= value <= MOST_TILES:
            raise self._refused(name, f"no number of tiles from 1 to {MOST_TILES}")
        return int(value)

    def _longest_edge(self, name: str, default: Mapping[str, int]) -> int:
        edges = self._edges(name, self._value(name, default), square=True)
        if set(edges) != {"longest_edge"}:
            raise self._refused(name, "and the class cuts tiles by longest_edge")
        return edges["longest_edge"]

    def _check(self, processing: ImageProcessing) -> None:
        """Refuse fields that contradict each other."""
        if processing.do_center_crop and processing.crop_size is None:
            raise self._refused("crop_size", "and do_center_crop needs one")
        if processing.do_pad and not all(
            0 <= int(each * 255) <= 255 for each in processing.image_mean
        ):
            raise self._refused("image_mean", "which is no colour to pad with (do_pad)")
        pad, fixed = processing.pad_size, processing.model_copy(update={"pad_size": None}).output
        if pad and fixed and (pad.height < fixed[0] or pad.width < fixed[1]):
            raise self._refused("pad_size", f"less than the pictures of {fixed[0]}x{fixed[1]} have")

    def _value(self, name: str, default: Any) -> Any:
        return self._fields.get(name, default)

    def _refused(self, name: str, why: str, remedy: str = REMEDY) -> CompExportError:
        written = repr(self._fields[name]) if name in self._fields else "left out"
        short = written if len(written) < 80 else f"{written[:77]}..."
        return CompExportError(
            f"{self._path}: {name} of {self._kind.name} is {short}, {why}: {remedy}"
        )

    def _switch(self, name: str, *, default: bool | None) -> bool:
        value = self._value(name, default)
        if value is not None and not isinstance(value, bool):
            raise self._refused(name, "neither true nor false")
        return bool(value)

    def _filter(self) -> int:
        value = self._value("resample", self._kind.resample)
        if not _is_count(value) or not 0 <= value <= 5:
            raise self._refused("resample", "no number of a filter", f"write one of {FILTERS}")
        return int(value)

    def _factor(self) -> float:
        value = self._value("rescale_factor", 1 / 255)
        if not _is_number(value):
            raise self._refused("rescale_factor", "no number")
        return float(value)

    def _mean(self, normalised: bool, padded: bool) -> tuple[float, ...]:
        """Return the mean, which is also the padding colour: black if there is none."""
        name, value = "image_mean", self._value("image_mean", self._kind.image_mean)
        if not normalised and not padded:
            return self._kind.image_mean
        if not normalised and value is None:
            return (0.0, 0.0, 0.0)
        if padded and _is_number(value):
            raise self._refused(name, "and do_pad needs three numbers, one of each channel")
        return self._colour(name, self._kind.image_mean)

    def _colour(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Return a number for each channel; a single number is for all three."""
        value = self._value(name, default)
        if _is_number(value):
            return (float(value),) * 3
        if (
            not isinstance(value, list | tuple)
            or len(value) != 3
            or not all(map(_is_number, value))
        ):
            raise self._refused(name, "not three numbers, one of each channel")
        return tuple(float(each) for each in value)

    def _std(self) -> tuple[float, ...]:
        deviations = self._colour("image_std", self._kind.image_std)
        if any(abs(each) < SMALLEST for each in deviations):
            raise self._refused("image_std", "by which pixels would be divided")
        return deviations

    def _size(self) -> ImageSize:
        kind = self._kind
        if kind.squares and self._switch("use_square_size", default=None):
            edge = kind.size["shortest_edge"]
            return ImageSize(height=edge, width=edge)
        square = self._switch("default_to_square", default=kind.default_to_square)
        edges = self._edges("size", self._value("size", kind.size), square)
        if set(edges) not in SIZES:
            allowed = " or ".join(", ".join(sorted(names)) for names in SIZES)
            raise self._refused("size", f"and the class reads {allowed}")
        return ImageSize(**edges)

    def _box(self, name: str, default: Mapping[str, int] | None) -> CropSize | None:
        """Return a height and a width."""
        value = self._value(name, default)
        if value is None:
            return None
        edges = self._edges(name, value, square=True)
        if set(edges) != {"height", "width"}:
            raise self._refused(name, "and the class reads height, width")
        return CropSize(**edges)

    def _edges(self, name: str, value: Any, square: bool) -> dict[str, int]:
        """Return edges in pixels, from any of their forms."""
        if _is_count(value):
            edges = {"height": value, "width": value} if square else {"shortest_edge": value}
        elif isinstance(value, list) and len(value) == 2:
            edges = {"height": value[0], "width": value[1]}
        elif isinstance(value, dict):
            edges = value
        else:
            raise self._refused(name, "neither a number of pixels nor an object of such")
        for edge in edges.values():
            if not _is_count(edge) or not 0 < edge <= LONGEST:
                raise self._refused(name, f"which is no number of pixels from 1 to {LONGEST}")
        return dict(edges)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return _is_count(value) and abs(value) < 2**53
