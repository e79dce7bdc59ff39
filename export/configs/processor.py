"""The image processor of a checkpoint, for manifests and slim checkpoints."""

import json
from pathlib import Path

from comp.checkpoints.image_processor import (
    AGAIN,
    NESTED,
    PLAIN,
    TOKENIZER,
    find_image_processor,
    read_image_processing,
    require_image_size,
)
from comp.checkpoints.image_settings import ImageProcessing
from comp.utils.files import write_text
from comp.utils.json_files import read_object

NAMING = (NESTED, PLAIN, TOKENIZER)  # files that can name the processor's class


def image_processing_for(checkpoint: Path, image_size: int) -> ImageProcessing:
    """Settings that turn images into squares of ``image_size`` pixels.

    Raises:
        CompExportError: the checkpoint has no supported image processor, or its images have another
            size.
    """
    processing = read_image_processing(checkpoint)
    require_image_size(processing, image_size, checkpoint)
    return processing


def name_classes(directory: Path, dense: Path, processor: str) -> None:
    """Write the class names that transformers infers from the dense ``model_type`` into copied files.

    A slim model has another type, for which transformers knows no processor.

    Args:
        directory: with copies of the files of ``dense``.
        dense: a checkpoint.
        processor: class name of its processor.
    """
    image_processor = find_image_processor(dense)
    path = directory / image_processor.path.name
    whole = read_object(path, AGAIN)
    fields = whole if path.name == PLAIN else whole["image_processor"]
    if fields.get("image_processor_type") is None:
        fields["image_processor_type"] = image_processor.kind.name
    if not any(_object(directory / name).get("processor_class") for name in NAMING):
        whole["processor_class"] = processor
    write_text(path, json.dumps(whole, indent=2) + "\n")


def _object(path: Path) -> dict[str, object]:
    return read_object(path, AGAIN) if path.is_file() else {}
