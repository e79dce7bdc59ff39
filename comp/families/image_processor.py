"""Load the image processor of a checkpoint as a class of transformers."""

from pathlib import Path
from typing import Any

from comp.checkpoints.image_classes import HARMLESS
from comp.checkpoints.image_processor import ImageProcessorFile, find_image_processor


def load_image_processor(directory: Path) -> Any:
    """Return the image processor that ``AutoImageProcessor`` makes, always with the Pillow backend.

    The other backend, which transformers prefers where torchvision is installed, resizes to different
    pixels, so that a model would be pruned on different inputs on different machines.

    Raises:
        CompExportError: as ``comp.checkpoints.image_processor.read_image_processing``.
    """
    return image_processor_of(find_image_processor(directory))


def image_processor_of(file: ImageProcessorFile) -> Any:
    """Return the image processor that a file describes.

    Raises:
        CompExportError: as ``comp.checkpoints.image_processor.read_image_processing``.
    """
    import transformers

    file.settings()  # refuses unknown fields
    fields = {name: value for name, value in file.fields.items() if name not in HARMLESS}
    return getattr(transformers, f"{file.kind.name}Pil").from_dict(fields)
