"""Load a checkpoint as the adapter of its family."""

from pathlib import Path

import torch

from comp.checkpoints import read_config
from comp.errors import CompExportError
from comp.families.base import FamilyAdapter

FAMILIES = {"llava": "llava", "comp_llava": "llava"}


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
            f"{directory} is a {config.get('model_type')!r} model: supported are LLaVA-1.5 checkpoints "
            "(model_type 'llava')"
        )
    _require_weights(directory)
    from transformers.utils import logging

    from comp.families.llava import LlavaAdapter

    logging.disable_progress_bar()  # our own says what is going on

    model = _load_model(directory, config, device_map)
    processor = _load_processor(directory)
    if device_map is None:
        model.to(device)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return LlavaAdapter(model, processor, stored)


def _require_weights(directory: Path) -> None:
    if any(directory.glob("*.safetensors")):
        return
    pickled = [path.name for path in directory.glob("*.bin")]
    if pickled:
        raise CompExportError(
            f"{directory} holds {pickled[0]}, a pickle, which is never loaded: convert it to safetensors"
        )
    raise CompExportError(f"{directory} holds no *.safetensors: fetch the checkpoint's weights")


def _load_model(directory: Path, config: dict, device_map: str | None):  # type: ignore[no-untyped-def]
    from safetensors import SafetensorError
    from transformers import LlavaConfig, LlavaForConditionalGeneration

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
    slim = config["model_type"] == "comp_llava"
    model_class = CompLlavaForConditionalGeneration if slim else LlavaForConditionalGeneration
    config_class = CompLlavaConfig if slim else LlavaConfig
    try:
        return model_class.from_pretrained(
            directory,
            config=config_class.from_pretrained(directory),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            device_map=device_map,
        ).eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CompExportError(f"cannot load {directory}: {str(error).splitlines()[0]}") from error


def _load_processor(directory: Path):  # type: ignore[no-untyped-def]
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    try:
        processor = LlavaProcessor.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
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
