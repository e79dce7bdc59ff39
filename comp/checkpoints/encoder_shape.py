"""Read the sizes of a CLIP or a BLIP from its ``config.json`` alone, without torch or transformers.

Missing fields have the defaults of transformers' ``CLIPConfig`` and ``BlipConfig`` (a test compares them).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from comp.checkpoints.shapes import BlockSize, TextShape, TowerShape
from comp.errors import CompExportError
from comp.plan import Task

CLIP_VISION: Mapping[str, int] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
CLIP_TEXT: Mapping[str, int] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
CLIP_PROJECTION = 512
BLIP_VISION: Mapping[str, int] = {**CLIP_VISION, "image_size": 384, "patch_size": 16}
BLIP_TEXT: Mapping[str, int] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
}
BLIP_PROJECTION = 256
NLVR_MERGE_FROM = 6
ARCHITECTURES: Mapping[str, Task] = {
    "BlipForConditionalGeneration": "caption",
    "BlipForQuestionAnswering": "question",
    "BlipForImageTextRetrieval": "retrieval",
    "BlipForNlvr2": "statement",
    "CLIPModel": "retrieval",
}
PACKAGED = ("clip-b16", "clip-l14-336", "blip-retrieval", "blip-vqa", "blip-caption", "blip-nlvr")


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a CLIP or a BLIP for one task.

    Attributes:
        text: the text encoder; the decoder in captioning.
        decoder: the decoder of answers in question answering; ``None`` in other tasks.
        projection: width of the embeddings that retrieval compares; 0 if there are none.
    """

    family: Literal["clip", "blip"]
    task: Task
    vision: TowerShape
    text: TextShape
    decoder: TextShape | None = None
    projection: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> "EncoderShape":
        """Read the sizes from a configuration as JSON holds it; ``where`` names it in errors.

        Raises:
            CompExportError: neither a CLIP nor a BLIP, or one for an unknown task.
        """
        kind = config.get("model_type")
        architecture = (config.get("architectures") or [""])[0]
        if kind == "clip":
            return _clip(config)
        if kind in ("blip", "comp_blip_nlvr") and architecture in ARCHITECTURES:
            return _blip(config, ARCHITECTURES[architecture])
        raise CompExportError(
            f"{where}: model_type {kind!r} with architecture {architecture!r} is none of "
            f"{', '.join(ARCHITECTURES)}"
        )


def packaged_shape(name: str) -> EncoderShape:
    """Return the sizes of one of ``PACKAGED``."""
    path = files("comp") / "models" / "configs" / f"{name}.json"
    return EncoderShape.from_config(json.loads(path.read_text(encoding="utf-8")), name)


def _clip(config: Mapping[str, Any]) -> EncoderShape:
    return EncoderShape(
        family="clip",
        task="retrieval",
        vision=_tower({**CLIP_VISION, **(config.get("vision_config") or {})}),
        text=_text({**CLIP_TEXT, **(config.get("text_config") or {})}, branches=0),
        projection=config.get("projection_dim") or CLIP_PROJECTION,
    )


def _blip(config: Mapping[str, Any], task: Task) -> EncoderShape:
    text_sizes = {**BLIP_TEXT, **(config.get("text_config") or {})}
    merge_from = config.get("merge_from_layer", NLVR_MERGE_FROM) if task == "statement" else None
    text = _text(text_sizes, branches=2 if task == "statement" else 1, merge_from=merge_from)
    return EncoderShape(
        family="blip",
        task=task,
        vision=_tower({**BLIP_VISION, **(config.get("vision_config") or {})}),
        text=text,
        decoder=text if task == "question" else None,
        projection=config.get("image_text_hidden_size") or BLIP_PROJECTION
        if task == "retrieval"
        else 0,
    )


def _tower(sizes: Mapping[str, Any]) -> TowerShape:
    block = BlockSize(sizes["num_attention_heads"], sizes["intermediate_size"])
    return TowerShape(
        hidden_size=sizes["hidden_size"],
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        blocks=(block,) * sizes["num_hidden_layers"],
    )


def _text(sizes: Mapping[str, Any], branches: int, merge_from: int | None = None) -> TextShape:
    heads = sizes["num_attention_heads"]
    return TextShape(
        hidden_size=sizes["hidden_size"],
        head_dim=sizes["hidden_size"] // heads,
        vocab_size=sizes["vocab_size"],
        positions=sizes["max_position_embeddings"],
        blocks=tuple(
            BlockSize(
                heads,
                sizes["intermediate_size"],
                (heads,) * branches,
                merges=merge_from is not None and number >= merge_from,
            )
            for number in range(sizes["num_hidden_layers"])
        ),
    )
