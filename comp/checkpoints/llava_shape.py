"""Read the sizes of a LLaVA from its ``config.json`` alone, without torch or transformers.

Configurations on the hub omit values that equal the defaults of ``LlavaConfig``, ``CLIPVisionConfig`` and
``LlamaConfig``, so that those defaults are repeated here (a test compares them with transformers).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from comp.checkpoints.encoder_shape import CLIP_VISION, PACKAGED
from comp.checkpoints.locate import ALIASES, EMBEDDED, read_config, resolve_model
from comp.checkpoints.pruning_entry import PartSizes, PruningEntry
from comp.checkpoints.shapes import (
    CHANNELS,
    BlockSize,
    LlamaShape,
    TowerShape,
    cut_blocks,
    planned_blocks,
)
from comp.checkpoints.tying import may_be_tied
from comp.errors import CompExportError
from comp.plan import DropPlan, ImageSelection, PruningPlan
from comp.registry.families import family_called

DENSE_TYPE = "llava"
SLIM_TYPE = "comp_llava"
DROP_SHARES = (0.25, 0.5, 0.75)  # of the depth

CLIP_DEFAULTS: Mapping[str, Any] = {**CLIP_VISION, "num_channels": CHANNELS}
# LlavaConfig's values if the whole vision_config is missing.
LLAVA_TOWER: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LLAMA_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "attention_bias": False,
    "mlp_bias": False,
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a LLaVA, dense or slim.

    Attributes:
        vision: all blocks of the vision tower.
        vision_used_layers: tower blocks up to the last feature layer; later ones are never run.
        feature_layers: number of hidden states of the tower that are concatenated.
        tie_word_embeddings: the flag; a checkpoint with a separate output layer keeps it nevertheless.
        drops: token drops (empty for a dense model).
        image_selection: selection of image tokens after the tower; ``None``: all.
    """

    vision: TowerShape
    text: LlamaShape
    vision_used_layers: int
    feature_layers: int
    keeps_class_token: bool
    projector_bias: bool
    tie_word_embeddings: bool
    drops: tuple[DropPlan, ...] = ()
    image_selection: ImageSelection | None = None

    @property
    def drop_layers(self) -> tuple[int, ...]:
        """Decoder blocks after which CoMP drops tokens: 8, 16 and 24 of 32."""
        places = sorted({max(1, round(share * self.num_layers)) for share in DROP_SHARES})
        return tuple(place for place in places if place < self.num_layers)

    @property
    def num_layers(self) -> int:
        """Number of language blocks."""
        return len(self.text.blocks)

    @property
    def used_tower(self) -> TowerShape:
        """The vision tower with only the blocks that run."""
        return self.vision.first(self.vision_used_layers)

    @property
    def tower_tokens(self) -> int:
        """Tokens of one image that the vision tower gives."""
        return self.vision.num_patches + self.keeps_class_token

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the language model."""
        return self.tower_tokens if self.image_selection is None else self.image_selection.count

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> "ModelShape":
        """Read the sizes from a configuration as JSON holds it; ``where`` names it in errors.

        Raises:
            CompExportError: it is not a LLaVA with a CLIP tower and a Llama language model.
        """
        kind = config.get("model_type")
        if kind not in (DENSE_TYPE, SLIM_TYPE):
            raise CompExportError(
                f"{where}: model_type is {kind!r}, not 'llava': "
                "pass --model of a LLaVA-1.5 checkpoint"
            )
        given = config.get("vision_config")
        vision = {**CLIP_DEFAULTS, **(LLAVA_TOWER if given is None else _given(given))}
        text = {**LLAMA_DEFAULTS, **_given(config.get("text_config") or {})}
        _require(
            where,
            "vision_config",
            vision.get("model_type", "clip_vision_model"),
            "clip_vision_model",
        )
        _require(where, "text_config", text.get("model_type", "llama"), "llama")
        pruning = PruningEntry.read(config, where)
        return cls(
            text=_language(text, pruning.language or PartSizes()),
            vision=_tower(vision, pruning.vision or PartSizes(), where),
            **_features(config, vision["num_hidden_layers"], where),
            tie_word_embeddings=may_be_tied(config),
            projector_bias=bool(config.get("multimodal_projector_bias", True)),
            drops=pruning.drops or (),
        ).selecting(pruning.image_selection)

    def with_plan(self, plan: PruningPlan) -> "ModelShape":
        """Return the sizes after applying ``plan`` to this dense model.

        Raises:
            CompExportError: the plan was made for another model.
        """
        family = family_called(plan.family)
        if family is None or not family.reads_image_tokens:
            raise CompExportError(
                f"that is a plan of a {plan.family}, and the model is a llava: pass the plan of a llava"
            )
        vision, text = self.vision, self.text
        language = planned_blocks(text.blocks, plan.part("language"), text.group_size)
        return replace(
            self.selecting(plan.image_selection),
            vision=replace(vision, blocks=planned_blocks(vision.blocks, plan.part("vision"))),
            text=replace(text, blocks=language),
            drops=plan.drops,
        )

    def selecting(self, selection: ImageSelection | None) -> "ModelShape":
        """Return the sizes with this selection of image tokens after the tower.

        Raises:
            CompExportError: the tower gives another number of tokens, or no tower block is used whose
                attention could select.
        """
        if selection is None:
            return self
        if selection.tower_tokens != self.tower_tokens:
            raise CompExportError(
                f"the plan's image_selection is of {selection.tower_tokens} tokens of an image, the "
                f"model's tower gives {self.tower_tokens}: pass the --model that the plan was made for"
            )
        if self.vision_used_layers == 0:
            raise CompExportError(
                "image tokens are chosen by the attention of the tower's last block that is used, and "
                "vision_feature_layer leaves none: choose another --method"
            )
        return replace(self, image_selection=selection)


def read_shape(model: str) -> ModelShape:
    """Return the sizes of ``--model``: an embedded model, an alias, a directory or a hub id.

    Only ``config.json`` is read. The package contains those of the aliases, so that ``llava-7b`` needs
    neither weights nor a network.

    Raises:
        CompExportError: there is no such model, or it is not a LLaVA-1.5.
    """
    return ModelShape.from_config(config_of(model), model)


def config_of(model: str) -> dict[str, Any]:
    """Return the configuration of ``--model``: packaged, in a directory, or on the hub.

    Raises:
        CompExportError: there is no such model.
    """
    if model in (*ALIASES, *PACKAGED):
        packaged = files("comp") / "models" / "configs" / f"{model}.json"
        config: dict[str, Any] = json.loads(packaged.read_text(encoding="utf-8"))
        return config
    if model in EMBEDDED or Path(model).is_dir() or model.count("/") != 1:
        return read_config(resolve_model(model))
    return _hub_config(model)


def _hub_config(repository: str) -> dict[str, Any]:
    """Download ``config.json`` of a repository on the hub, without its weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = Path(hf_hub_download(repository, "config.json"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CompExportError(
            f"no config.json for {repository!r} ({reason}): check the id, or pass --model DIR"
        ) from error
    return read_config(path.parent)


def _language(text: Mapping[str, Any], pruned: PartSizes) -> LlamaShape:
    heads = text["num_attention_heads"]
    kv_heads = text.get("num_key_value_heads", heads)
    blocks = (BlockSize(kv_heads, text["intermediate_size"]),) * text["num_hidden_layers"]
    return LlamaShape(
        hidden_size=text["hidden_size"],
        head_dim=text.get("head_dim", text["hidden_size"] // heads),
        group_size=heads // kv_heads,
        vocab_size=text["vocab_size"],
        attention_bias=text["attention_bias"],
        mlp_bias=text["mlp_bias"],
        blocks=cut_blocks(blocks, pruned.blocks),
    )


def _tower(vision: Mapping[str, Any], pruned: PartSizes, where: str) -> TowerShape:
    """Return the sizes of the tower; only its first blocks, those that run, may be recorded."""
    for name in ("image_size", "patch_size"):
        if not isinstance(vision[name], int):
            raise CompExportError(
                f"{where}: vision_config.{name} is {vision[name]!r}, not a number: "
                "only square images are supported"
            )
    heads = vision["num_attention_heads"]
    blocks = (BlockSize(heads, vision["intermediate_size"]),) * vision["num_hidden_layers"]
    recorded = pruned.blocks
    return TowerShape(
        hidden_size=vision["hidden_size"],
        head_dim=vision["hidden_size"] // heads,
        num_channels=vision["num_channels"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        blocks=cut_blocks(blocks[: len(recorded)], recorded) + blocks[len(recorded) :],
    )


def _features(config: Mapping[str, Any], layers: int, where: str) -> dict[str, Any]:
    layer_field = config.get("vision_feature_layer", -2)
    feature_layers = [layer_field] if isinstance(layer_field, int) else list(layer_field)
    passed = [layer if layer >= 0 else layers + 1 + layer for layer in feature_layers]
    if not passed or not all(0 <= layer <= layers for layer in passed):
        raise CompExportError(
            f"{where}: vision_feature_layer {layer_field} of a tower of {layers} layers: fix config.json"
        )
    strategy = config.get("vision_feature_select_strategy", "default")
    return {
        "vision_used_layers": max(passed),
        "feature_layers": len(passed),
        "keeps_class_token": strategy == "full",
    }


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _require(where: str, setting: str, value: object, supported: str) -> None:
    if value != supported:
        raise CompExportError(
            f"{where}: {setting}.model_type is {value!r}, supported is {supported!r}: "
            "pass --model of a LLaVA-1.5 checkpoint"
        )
