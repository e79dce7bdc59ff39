"""The image processor of a checkpoint, as transformers has it."""

from pathlib import Path
from typing import Any

from comp.checkpoints.image_classes import HARMLESS
from comp.checkpoints.image_processor import ImageProcessorFile, find_image_processor


def load_image_processor(directory: Path) -> Any:
    """The one that ``AutoImageProcessor`` makes, always of the backend that computes with Pillow.

    The other backend, which transformers prefers where torchvision is installed, resizes to other
    pixels: a model would be pruned on one machine with pictures of its own.

    Raises:
        CompExportError: as ``comp.checkpoints.image_processor.read_image_processing``.
    """
    return image_processor_of(find_image_processor(directory))


def image_processor_of(file: ImageProcessorFile) -> Any:
    """The one that a file describes.

    Raises:
        CompExportError: as ``comp.checkpoints.image_processor.read_image_processing``.
    """
    import transformers

    file.settings()  # refuses what is not known
    fields = {name: value for name, value in file.fields.items() if name not in HARMLESS}
    return getattr(transformers, f"{file.kind.name}Pil").from_dict(fields)
