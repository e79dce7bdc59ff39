"""Check ``config.json`` and merge it as transformers does; refuse unsupported formats by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comp.checkpoints.config_fields import check_fields
from comp.checkpoints.encoder_shape import CLIP_TEXT, CLIP_VISION
from comp.checkpoints.shapes import CHANNELS
from comp.errors import CompExportError
from comp.registry.families import family_of

CONVERT = "convert it with {script} of transformers' source (src/transformers/models/{folder})"
LLAVA_SCRIPT = CONVERT.format(script="convert_llava_weights_to_hf.py", folder="llava")
BLIP_SCRIPT = CONVERT.format(script="convert_blip_original_pytorch_to_hf.py", folder="blip")
CLIP_SCRIPT = CONVERT.format(script="convert_clip_original_pytorch_to_hf.py", folder="clip")
# llava_next and llava_onevision are transformers' own types of other models; they are refused elsewhere.
AUTHORS_LLAVAS = ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen")
PARTS = ("text_config", "vision_config")
QUANTISED = ("quantization_config", "compression_config")
PICKLES = (".pt", ".pth")
# Defaults of CLIPTextConfig and CLIPVisionConfig, for the fields that are read here.
CLIP_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "text_config": {
        **CLIP_TEXT,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vision_config": {
        **CLIP_VISION,
        "num_channels": CHANNELS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}


def checked_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a checked and merged configuration; ``where`` names it in errors.

    Configurations of unsupported families are returned unchanged; the loader refuses them.

    Raises:
        CompExportError: it is in the authors' own format, lacks a part, has quantised weights, or has an
            invalid field.
    """
    _refuse_originals(config, where)
    kind = config.get("model_type")
    if not isinstance(kind, str) or family_of(kind) is None:
        return config
    for owner, values in (("", config), *((f"{part}.", config.get(part)) for part in PARTS)):
        method = _quantised(values) if isinstance(values, dict) else None
        if method is not None:
            raise CompExportError(
                f"{where}: {owner}{method}: the weights are quantised; pass the unquantised checkpoint "
                "that they were made of"
            )
    if kind.endswith("clip"):
        config = _merged(config, where)
    for part in PARTS:
        if not isinstance(config.get(part), dict):
            raise CompExportError(
                f"{where} has no {part}: it is not a whole configuration of a {kind} in the format of "
                "transformers; fetch it again, or save the model with save_pretrained"
            )
    check_fields(config, where)
    return config


def original_files(directory: Path) -> str:
    """Name the format of a directory without ``config.json``, and how to convert it; empty if unknown."""
    names = sorted(path.name for path in directory.iterdir())
    if "open_clip_config.json" in names:
        return f": open_clip_config.json is of open_clip, {_open_clip()}"
    if "adapter_config.json" in names:
        return (
            ": adapter_config.json is of a PEFT adapter, which holds no model; merge it into the one that "
            "it was trained on (merge_and_unload) and save that with save_pretrained"
        )
    pickled = next((name for name in names if name.endswith(PICKLES)), None)
    if pickled is None:
        return ""
    script = BLIP_SCRIPT if pickled.endswith(".pth") else CLIP_SCRIPT
    return f": {pickled} is of the authors' own format, {script}"


def _refuse_originals(config: Mapping[str, Any], where: str) -> None:
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    kind = str(config.get("model_type"))
    if (
        kind in AUTHORS_LLAVAS
        or "mm_vision_tower" in config
        or any(name.startswith("Llava") and name.endswith("ForCausalLM") for name in names)
    ):
        raise CompExportError(
            f"{where} is of the authors' own LLaVA ({kind}, {', '.join(names) or 'no architecture'}), "
            f"not of transformers: {LLAVA_SCRIPT}, or take it from llava-hf on the hub"
        )
    if "model_cfg" in config:
        raise CompExportError(f"{where} is of open_clip (model_cfg): {_open_clip()}")
    if "encoder_width" in config and kind in ("bert", "None"):
        raise CompExportError(
            f"{where} is the text configuration of the authors' own BLIP (encoder_width): "
            f"{BLIP_SCRIPT}, or take it from Salesforce on the hub"
        )


def _open_clip() -> str:
    return (
        "take config.json and model.safetensors of transformers from the same repository, or, of "
        f"OpenAI's sizes, {CLIP_SCRIPT}"
    )


def _quantised(values: Mapping[str, Any]) -> str | None:
    """Return the field that declares quantised weights, with its method; ``None`` if there is none."""
    for name in QUANTISED:
        entry = values.get(name)
        if entry:
            method = entry.get("quant_method") if isinstance(entry, dict) else None
            return f"{name} ({method or 'of no method'})"
    return None


def _merged(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Merge the parts of old CLIP configurations: ``text_config_dict`` overrides ``text_config``."""
    merged = dict(config)
    for part in PARTS:
        older, given = merged.pop(f"{part}_dict", None), config.get(part) or {}
        if older is None:
            continue
        if not isinstance(older, dict) or not isinstance(given, dict):
            raise CompExportError(
                f"{where}: {part}_dict and {part} are not both objects: fetch the checkpoint again"
            )
        merged[part] = {**given, **CLIP_FIELDS[part], **older}
    return merged
