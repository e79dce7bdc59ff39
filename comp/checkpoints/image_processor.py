"""Read a checkpoint's image processor: its class, its fields, and their meaning for a picture.

``processor_config.json`` and ``preprocessor_config.json`` are interpreted as transformers does. Unknown and
invalid fields are refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.checkpoints.image_classes import CLASSES, FIELDS, ImageClass, class_named
from comp.checkpoints.image_fields import REMEDY, FieldReader
from comp.checkpoints.image_settings import ImageProcessing
from comp.checkpoints.locate import read_config
from comp.errors import CompExportError
from comp.registry.families import family_of
from comp.utils.json_files import read_object

NESTED = "processor_config.json"  # its "image_processor" takes precedence
PLAIN = "preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"
AGAIN = "fetch it again"


@dataclass(frozen=True)
class ImageProcessorFile:
    """The image processor in a checkpoint's files.

    Attributes:
        path: the file that defines it.
        kind: the class that transformers uses.
        fields: the fields of the file.
    """

    path: Path
    kind: ImageClass
    fields: Mapping[str, Any]

    def settings(self) -> ImageProcessing:
        """Return the settings that the fields mean for the class.

        Raises:
            CompExportError: a field is unknown, or the class cannot use its value.
        """
        return FieldReader(self.path, self.kind, self.fields).settings()


def read_image_processing(directory: Path) -> ImageProcessing:
    """Return the settings of a checkpoint's image processor.

    Raises:
        CompExportError: there is no image processor, its class or a field is unknown, or the class
            cannot use a value.
    """
    return find_image_processor(directory).settings()


def find_image_processor(directory: Path) -> ImageProcessorFile:
    """Return the image processor that transformers' auto classes would use.

    Raises:
        CompExportError: there is none, or its class is unknown.
    """
    path, fields = _fields(directory)
    _refuse_overriding(directory / TOKENIZER)
    config = read_config(directory)
    named = _named(path, fields) or config.get("image_processor_type")
    if named is None:
        family = family_of(config.get("model_type"))
        named = None if family is None else family.image_processor
    if named is None:
        raise CompExportError(
            f"{path} names no image processor: write its class as image_processor_type"
        )
    kind = class_named(named) if isinstance(named, str) else None
    if kind is None:
        supported = ", ".join(CLASSES)
        raise CompExportError(
            f"{path}: the image processor is {named!r}, which is not known (known: {supported}): write the "
            "one of these that does the same as image_processor_type, or use another checkpoint"
        )
    return ImageProcessorFile(path, kind, fields)


def require_image_size(processing: ImageProcessing, image_size: int, where: Path) -> None:
    """Refuse settings whose output does not fit a tower for squares of ``image_size`` pixels.

    Raises:
        CompExportError: names the sizes in pixels.
    """
    if processing.output == (image_size, image_size):
        return
    if processing.output is None:
        problem = "gives pictures of sizes that differ (size, do_resize, do_center_crop, do_pad)"
    else:
        height, width = processing.output
        problem = f"gives pictures of {height}x{width} pixels (size, crop_size)"
    raise CompExportError(
        f"the image processor of {where} {problem}, and the image tower takes {image_size}x{image_size} "
        f"(vision_config.image_size): {REMEDY}"
    )


def _fields(directory: Path) -> tuple[Path, dict[str, Any]]:
    nested, plain = directory / NESTED, directory / PLAIN
    if nested.is_file():
        whole = read_object(nested, AGAIN)
        if "image_processor" in whole:
            fields = whole["image_processor"]
            if not isinstance(fields, dict):
                raise CompExportError(
                    f"{nested}: image_processor is {fields!r}, not an object: {AGAIN}"
                )
            return nested, fields
    if not plain.is_file():
        raise CompExportError(
            f"{directory} has no image processor: add {PLAIN} or {NESTED} of the checkpoint"
        )
    return plain, read_object(plain, AGAIN)


def _refuse_overriding(path: Path) -> None:
    """Refuse image settings in a tokenizer's file, which override transformers' image processors."""
    if not path.is_file():
        return
    settings = read_object(path, AGAIN)
    for name in sorted(FIELDS & settings.keys()):
        raise CompExportError(
            f"{path}: {name} is {settings[name]!r}, by which transformers overrides the image processor's "
            f"setting of that name: move it to {PLAIN}"
        )


def _named(path: Path, fields: Mapping[str, Any]) -> Any:
    """Return the class name in the fields, in either of its forms."""
    named = fields.get("image_processor_type")
    if isinstance(named, str) and "FeatureExtractor" in named:
        now = named.replace("FeatureExtractor", "ImageProcessor")
        raise CompExportError(
            f"{path}: image_processor_type is {named!r}, which transformers no longer has: write {now!r}"
        )
    remote = fields.get("auto_map")
    if named is None and not (isinstance(remote, dict) and "AutoImageProcessor" in remote):
        named = fields.get("feature_extractor_type")
        if isinstance(named, str):
            named = named.replace("FeatureExtractor", "ImageProcessor")
    return named
