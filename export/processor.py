"""The image processor's settings of a checkpoint, read without transformers."""

from pathlib import Path

from comp.errors import CompExportError
from export.checkpoint_files import optional_object
from export.manifest import ImageProcessing, ImageSize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read_image_processing(directory: Path) -> ImageProcessing:
    """The image processor's settings: ``processor_config.json`` or ``preprocessor_config.json``.

    Raises:
        CompExportError: when neither file has them.
    """
    found = optional_object(directory / "processor_config.json").get("image_processor")
    found = found or optional_object(directory / "preprocessor_config.json")
    if not found:
        raise CompExportError(
            f"{directory} has no image processor: add preprocessor_config.json or "
            "processor_config.json of the checkpoint"
        )
    size = found.get("size", {"shortest_edge": 224})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = found.get("crop_size")
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    settings = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} | {
        name: value
        for name, value in found.items()
        if name in ImageProcessing.model_fields and value is not None
    }
    settings["size"] = {name: size[name] for name in ImageSize.model_fields if name in size}
    if crop is not None:
        settings["crop_size"] = {"height": crop["height"], "width": crop["width"]}
    return ImageProcessing.model_validate(settings)
