"""SmolVLM and Idefics3 checkpoints: their classes, and checks before a model is loaded."""

from pathlib import Path
from typing import Any

from comp.families.checkpoint import CheckpointClasses, CheckpointFormat
from comp.families.llava.checkpoint import check_weights
from comp.families.llava.tiled_prompts import check_tiled_prompts


def _classes(directory: Path, config: dict[str, Any]) -> CheckpointClasses:
    import transformers

    from comp.families.smolvlm import adapter, slim
    from comp.families.smolvlm.processor import TiledProcessor

    del directory
    kind = str(config["model_type"])
    name = "SmolVLM" if kind.endswith("smolvlm") else "Idefics3"
    adapted = getattr(adapter, f"{name}Adapter")
    if kind.startswith("comp_"):
        model = getattr(slim, f"Comp{name}ForConditionalGeneration")
        return CheckpointClasses(model, getattr(slim, f"Comp{name}Config"), TiledProcessor, adapted)
    model = getattr(transformers, f"{name}ForConditionalGeneration")
    settings = getattr(transformers, f"{name}Config")
    return CheckpointClasses(model, settings, TiledProcessor, adapted)


FORMAT = CheckpointFormat(_classes, check_weights, check_tiled_prompts)
