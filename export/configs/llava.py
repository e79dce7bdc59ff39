"""Read what the graphs of a LLaVA need from ``config.json``.

``comp.checkpoints.llava_shape`` has the sizes; this module adds norms, activations, rotary embedding and
feature layers, with the defaults of ``LlavaConfig``, ``CLIPVisionConfig`` and ``LlamaConfig``, and refuses
what the graphs do not support.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from comp.checkpoints.llava_shape import DENSE_TYPE, SLIM_TYPE, ModelShape
from comp.checkpoints.pruning_entry import KEY, PartSizes, PruningEntry
from comp.errors import CompExportError
from comp.plan import PruningPlan
from export.configs.towers import ACTIVATIONS

SLIM_ARCHITECTURE = "CompLlavaForConditionalGeneration"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding parameters (``rope_parameters`` of transformers 5)."""

    kind: Literal["default", "linear", "llama3"]
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlavaShape:
    """Everything that the graphs of a LLaVA are built from, except the weights.

    Attributes:
        sizes: widths and counts, per layer where pruning changes them.
        feature_layers: number of tower blocks before each projected hidden state.
        max_position_embeddings: rows of the rotary tables.
    """

    sizes: ModelShape
    feature_layers: tuple[int, ...]
    vision_act: str
    layer_norm_eps: float
    projector_act: str
    rms_norm_eps: float
    max_position_embeddings: int
    rope: Rope
    image_token_id: int

    def pruned(self, plan: PruningPlan) -> "LlavaShape":
        """Return the shape after ``plan`` was applied.

        Raises:
            CompExportError: the plan is of another model.
        """
        if plan.family != DENSE_TYPE:
            raise CompExportError(
                f"a plan of family {plan.family!r} for a LLaVA: pass the run of a LLaVA"
            )
        if self.sizes.drops or self.sizes.image_selection:
            raise CompExportError(
                "the checkpoint is compressed already: pass its dense model with --model"
            )
        sizes = self.sizes.with_plan(plan)
        _check_drops(sizes)
        return replace(self, sizes=sizes)


def llava_of(config: dict[str, Any], where: str) -> LlavaShape:
    """Read a dense or a slim checkpoint's configuration; ``where`` names it in errors.

    Raises:
        CompExportError: it is not a LLaVA-1.5 (CLIP tower, Llama decoder), or has an unsupported feature;
            names the setting and its value.
    """
    sizes = ModelShape.from_config(config, where)
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    vision_act = vision.get("hidden_act") or "quick_gelu"
    projector_act = config.get("projector_hidden_act") or "gelu"
    strategy = config.get("vision_feature_select_strategy", "default")
    _require(where, "vision_feature_select_strategy", strategy, "default", "full")
    _require(where, "text_config.hidden_act", text.get("hidden_act") or "silu", "silu")
    _require(where, "vision_config.hidden_act", vision_act, *ACTIVATIONS)
    _require(where, "projector_hidden_act", projector_act, *ACTIVATIONS)
    if config.get("quantization_config"):
        raise CompExportError(f"{where}: the weights are quantised: pass an unquantised checkpoint")
    _check_drops(sizes)
    layers = len(sizes.vision.blocks)
    layer_setting = config.get("vision_feature_layer", -2)
    wanted = [layer_setting] if isinstance(layer_setting, int) else list(layer_setting)
    return LlavaShape(
        sizes=sizes,
        feature_layers=tuple(layer if layer >= 0 else layers + 1 + layer for layer in wanted),
        vision_act=vision_act,
        layer_norm_eps=vision.get("layer_norm_eps") or 1e-5,
        projector_act=projector_act,
        rms_norm_eps=text.get("rms_norm_eps") or 1e-6,
        max_position_embeddings=text.get("max_position_embeddings") or 2048,
        rope=_rope(where, text),
        image_token_id=config.get("image_token_index", config.get("image_token_id", 32000)),
    )


def slim_config(dense: dict[str, Any], sizes: ModelShape) -> dict[str, Any]:
    """The ``config.json`` of a slim checkpoint: the dense one plus the record of its pruning."""
    vision, text = sizes.vision, sizes.text
    pruning = PruningEntry(
        language=PartSizes(num_key_value_heads=text.heads, intermediate_size=text.channels),
        vision=PartSizes(num_attention_heads=vision.heads, intermediate_size=vision.channels),
        drops=sizes.drops,
        image_selection=sizes.image_selection,
    )
    return dense | {
        "model_type": SLIM_TYPE,
        "architectures": [SLIM_ARCHITECTURE],
        KEY: pruning.to_json(),
    }


def _rope(where: str, text: dict[str, Any]) -> Rope:
    """Read either spelling: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``."""
    parameters = dict(text.get("rope_scaling") or {}) | dict(text.get("rope_parameters") or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    _require(where, "text_config rope_type", kind, "default", "linear", "llama3")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise CompExportError(
            f"{where}: partial_rotary_factor is not supported: pass another --model"
        )
    theta = float(parameters.get("rope_theta") or text.get("rope_theta") or 10000.0)
    if kind == "default":
        return Rope("default", theta)
    try:
        if kind == "linear":
            return Rope("linear", theta, float(parameters["factor"]))
        return Rope(
            "llama3",
            theta,
            float(parameters["factor"]),
            float(parameters["low_freq_factor"]),
            float(parameters["high_freq_factor"]),
            int(parameters["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise CompExportError(
            f"{where}: rope of type {kind!r} without {error}: mend config.json"
        ) from error


def _check_drops(sizes: ModelShape) -> None:
    """Check that tokens are dropped in the decoder only, before its last block."""
    for drop in sizes.drops:
        if drop.part != "language" or drop.after_layer >= sizes.num_layers:
            raise CompExportError(
                f"tokens dropped after block {drop.after_layer} of {drop.part}: a LLaVA drops them in "
                f"its decoder alone, before the last of {sizes.num_layers} layers; run `comp-export "
                "prune` again"
            )


def _require(where: str, setting: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        names = " or ".join(repr(item) for item in allowed)
        raise CompExportError(
            f"{where}: {setting} is {value!r}, supported is {names}: "
            "pass --model of a LLaVA-1.5 checkpoint"
        )
