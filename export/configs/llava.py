"""Read what the graphs of a LLaVA need from ``config.json``.

``comp.checkpoints.llava_shape`` has the sizes; this module adds norms, activations, rotary embedding and
feature layers, with the defaults of transformers' classes, and refuses what the graphs do not support.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from comp.checkpoints.decoder_shape import decoder_fields
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.model_parts import PARTS_OF
from comp.checkpoints.pruning_entry import KEY, PartSizes, PruningEntry
from comp.errors import CompExportError
from comp.plan import PruningPlan
from comp.registry.families import family_of
from comp.registry.family import Family
from export.configs.towers import ACTIVATIONS


@dataclass(frozen=True)
class Rope:
    """Rotary embedding parameters (``rope_parameters`` of transformers 5)."""

    kind: Literal["default", "linear", "llama3", "yarn"]
    theta: float
    factor: float = 1.0
    attention_factor: float = 1.0  # of cosines and sines
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlavaShape:
    """Everything that the graphs of a LLaVA are built from, except the weights.

    Attributes:
        family: name of its family.
        sizes: widths and counts, per layer where pruning changes them.
        feature_layers: number of tower blocks before each projected hidden state.
        max_position_embeddings: rows of the rotary tables.
    """

    family: str
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
        if plan.family != self.family:
            raise CompExportError(
                f"a plan of family {plan.family!r} for a {self.family}: pass the run of a {self.family}"
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
        CompExportError: it is of another family, or has an unsupported feature; names the setting and its
            value.
    """
    sizes = ModelShape.from_config(config, where)
    family = _family(config)
    parts = PARTS_OF[family.name](config, where)
    vision, text = parts.vision, decoder_fields(parts.text, where)
    vision_act = vision.get("hidden_act") or parts.tower.act
    strategy = config.get("vision_feature_select_strategy", "default")
    _require(where, "vision_feature_select_strategy", strategy, "default", "full")
    _require(where, "text_config.hidden_act", text.get("hidden_act") or "silu", "silu")
    _require(where, "vision_config.hidden_act", vision_act, *ACTIVATIONS)
    _require(where, "projector_hidden_act", parts.projector_act, *ACTIVATIONS)
    if config.get("quantization_config"):
        raise CompExportError(f"{where}: the weights are quantised: pass an unquantised checkpoint")
    _check_drops(sizes)
    return LlavaShape(
        family=family.name,
        sizes=sizes,
        feature_layers=parts.feature_layers,
        vision_act=vision_act,
        layer_norm_eps=vision.get("layer_norm_eps") or parts.tower.layer_norm_eps,
        projector_act=parts.projector_act,
        rms_norm_eps=text.get("rms_norm_eps") or 1e-6,
        max_position_embeddings=sizes.text.positions,
        rope=_rope(where, text),
        image_token_id=parts.image_token_id,
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
    family = _family(dense)
    return dense | {
        "model_type": family.model_types[1],
        "architectures": [family.slim_architecture],
        KEY: pruning.to_json(),
    }


def _family(config: Mapping[str, Any]) -> Family:
    """The family of a configuration that ``ModelShape`` has read."""
    family = family_of(config.get("model_type"))
    assert family is not None
    return family


def _rope(where: str, text: dict[str, Any]) -> Rope:
    """Read either spelling: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``."""
    parameters = dict(text.get("rope_scaling") or {}) | dict(text.get("rope_parameters") or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    _require(where, "text_config rope_type", kind, "default", "dynamic", "linear", "llama3", "yarn")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise CompExportError(
            f"{where}: partial_rotary_factor is not supported: pass another --model"
        )
    theta = float(parameters.get("rope_theta") or text.get("rope_theta") or 10000.0)
    if kind in ("default", "dynamic"):
        # Dynamic frequencies change beyond max_position_embeddings alone, where the positions end.
        return Rope("default", theta)
    try:
        if kind == "yarn":
            return _yarn(theta, parameters)
        if kind == "linear":
            return Rope("linear", theta, float(parameters["factor"]))
        return Rope(
            "llama3",
            theta,
            float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise CompExportError(
            f"{where}: rope of type {kind!r} without {error}: mend config.json"
        ) from error


def _yarn(theta: float, parameters: Mapping[str, Any]) -> Rope:
    """Read YaRN's parameters as ``_compute_yarn_parameters`` of transformers does."""
    factor = float(parameters["factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention = parameters.get("attention_factor")
    if attention is None:
        up, down = (float(parameters.get(name) or 0) for name in ("mscale", "mscale_all_dim"))
        attention = scale(up) / scale(down) if up and down else scale(1.0)
    return Rope(
        "yarn",
        theta,
        factor,
        attention_factor=float(attention),
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
        original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
    )


def _check_drops(sizes: ModelShape) -> None:
    """Check that tokens are dropped in the decoder only, before its last block."""
    for drop in sizes.drops:
        if drop.part != "language" or drop.after_layer >= sizes.num_layers:
            raise CompExportError(
                f"tokens dropped after block {drop.after_layer} of {drop.part}: they are dropped in "
                f"the decoder alone, before the last of {sizes.num_layers} layers; run `comp-export "
                "prune` again"
            )


def _require(where: str, setting: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        names = " or ".join(repr(item) for item in allowed)
        raise CompExportError(
            f"{where}: {setting} is {value!r}, supported is {names}: "
            "pass --model of another checkpoint"
        )
