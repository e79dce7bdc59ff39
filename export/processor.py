"""The image processor of a checkpoint, as manifests carry it."""

from pathlib import Path

from comp.image_processor import read_image_processing, require_image_size
from comp.image_settings import ImageProcessing


def image_processing_for(checkpoint: Path, image_size: int) -> ImageProcessing:
    """What makes squares of ``image_size`` pixels of pictures.

    Raises:
        CompExportError: the checkpoint has no image processor that is known, or its pictures are of
            another size.
    """
    processing = read_image_processing(checkpoint)
    require_image_size(processing, image_size, checkpoint)
    return processing
