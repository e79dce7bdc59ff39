"""CLIP checkpoints: their classes."""

from pathlib import Path
from typing import Any

from comp.families.checkpoint import CheckpointClasses, CheckpointFormat


def _classes(_directory: Path, config: dict[str, Any]) -> CheckpointClasses:
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    from comp.families.clip.adapter import ClipAdapter
    from comp.families.clip.slim import CompCLIPConfig, CompCLIPModel

    model, settings = CLIPModel, CLIPConfig
    if config["model_type"] == "comp_clip":
        model, settings = CompCLIPModel, CompCLIPConfig
    return CheckpointClasses(model, settings, CLIPProcessor, ClipAdapter)


FORMAT = CheckpointFormat(_classes)
