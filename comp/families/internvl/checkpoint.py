"""InternVL checkpoints: their classes."""

from pathlib import Path
from typing import Any

from comp.families.checkpoint import CheckpointClasses, CheckpointFormat
from comp.families.llava.checkpoint import check_weights
from comp.families.llava.tiled_prompts import check_tiled_prompts


def _classes(directory: Path, config: dict[str, Any]) -> CheckpointClasses:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    from comp.families.internvl.adapter import InternVLAdapter
    from comp.families.internvl.processor import PictureProcessor
    from comp.families.internvl.slim import (
        CompInternVLConfig,
        CompInternVLForConditionalGeneration,
    )

    del directory
    if config["model_type"] == "comp_internvl":
        model, settings = CompInternVLForConditionalGeneration, CompInternVLConfig
    else:
        model, settings = InternVLForConditionalGeneration, InternVLConfig
    return CheckpointClasses(model, settings, PictureProcessor, InternVLAdapter)


FORMAT = CheckpointFormat(_classes, check_weights, check_tiled_prompts)
