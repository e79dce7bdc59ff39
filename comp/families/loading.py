"""Load a checkpoint as the adapter of its family."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comp.checkpoints import read_config
from comp.errors import CompExportError
from comp.families.base import FamilyAdapter

FAMILIES = {"llava": "llava", "comp_llava": "llava", "clip": "clip", "comp_clip": "clip"}


@dataclass(frozen=True)
class _Classes:
    """What a checkpoint is made of."""

    model: Any
    config: Any
    processor: Any
    adapter: Any


def load_adapter(
    directory: Path, device: torch.device | str = "cpu", device_map: str | None = None
) -> FamilyAdapter:
    """Load weights in fp32 with their processor.

    Args:
        directory: a checkpoint's directory (safetensors only).
        device: where to put the model.
        device_map: ``auto`` spreads a large model over all GPUs (through accelerate).

    Raises:
        CompExportError: for an unsupported family, missing weights or missing processor files.
    """
    config = read_config(directory)
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise CompExportError(
            f"{directory} is a {config.get('model_type')!r} model: supported are LLaVA-1.5 and CLIP "
            "checkpoints (model_type 'llava', 'clip')"
        )
    if device_map is not None and family != "llava":
        raise CompExportError(
            f"--device-map {device_map} spreads a large LLaVA over GPUs, and {directory} is a {family} "
            "model, which fits on one: leave it out"
        )
    _require_weights(directory)
    from transformers.utils import logging

    logging.disable_progress_bar()  # our own says what is going on

    classes = _CLASSES[family](directory, config)
    model = _load_model(directory, classes, device_map)
    processor = _load_processor(directory, classes.processor)
    if device_map is None:
        model.to(device)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return classes.adapter(model, processor, stored)


def _require_weights(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickled = [path.name for path in directory.glob("*.bin")]
    if pickled:
        raise CompExportError(
            f"{directory} holds {pickled[0]}, a pickle, which is never loaded: convert it to safetensors"
        )
    raise CompExportError(f"{directory} holds no *.safetensors: fetch the checkpoint's weights")


def _llava(directory: Path, config: dict[str, Any]) -> _Classes:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from comp.families.llava import LlavaAdapter
    from comp.families.slim_llava import CompLlavaConfig, CompLlavaForConditionalGeneration

    text, vision = (config.get(f"{part}_config", {}) for part in ("text", "vision"))
    for part, kind, wanted in (
        ("language", text.get("model_type", "llama"), "llama"),
        ("vision", vision.get("model_type", "clip_vision_model"), "clip_vision_model"),
    ):
        if kind != wanted:
            raise CompExportError(
                f"{directory} has a {kind!r} {part} model: LLaVA-1.5 has {wanted!r}, others are not supported"
            )
    if config["model_type"] == "comp_llava":
        model, settings = CompLlavaForConditionalGeneration, CompLlavaConfig
    else:
        model, settings = LlavaForConditionalGeneration, LlavaConfig
    return _Classes(model, settings, LlavaProcessor, LlavaAdapter)


def _clip(_directory: Path, config: dict[str, Any]) -> _Classes:
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    from comp.families.clip import ClipAdapter
    from comp.families.slim_clip import CompCLIPConfig, CompCLIPModel

    if config["model_type"] == "comp_clip":
        return _Classes(CompCLIPModel, CompCLIPConfig, CLIPProcessor, ClipAdapter)
    return _Classes(CLIPModel, CLIPConfig, CLIPProcessor, ClipAdapter)


_CLASSES = {"llava": _llava, "clip": _clip}


def _load_model(directory: Path, classes: _Classes, device_map: str | None) -> Any:
    from safetensors import SafetensorError

    try:
        return classes.model.from_pretrained(
            directory,
            config=classes.config.from_pretrained(directory),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            device_map=device_map,
        ).eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CompExportError(f"cannot load {directory}: {str(error).splitlines()[0]}") from error


def _load_processor(directory: Path, kind: Any) -> Any:
    from transformers import CLIPImageProcessorPil

    try:
        processor = kind.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CompExportError(
            f"{directory} has no complete processor ({str(error).splitlines()[0]}): it needs "
            "tokenizer.json, tokenizer_config.json and preprocessor_config.json or processor_config.json"
        ) from error
    if not isinstance(processor.image_processor, CLIPImageProcessorPil):
        # One image processor everywhere, whether or not torchvision is installed.
        processor.image_processor = CLIPImageProcessorPil.from_dict(
            processor.image_processor.to_dict()
        )
    return processor
