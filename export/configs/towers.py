"""Settings that the configurations of CLIP and BLIP towers share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from comp.plan import DropPlan, Part, PruningPlan
from comp.registry.families import family_of

T = TypeVar("T", bound="TowersShape")
ACTIVATIONS = ("gelu", "quick_gelu", "gelu_pytorch_tanh", "silu", "relu")


@dataclass(frozen=True)
class TowerSettings:
    """Activation and epsilon of one tower."""

    act: str
    layer_norm_eps: float


@dataclass(frozen=True, kw_only=True)
class TowersShape:
    """Everything but the weights that the graphs of a CLIP or a BLIP are built from.

    Attributes:
        sizes: widths and counts, per block where pruning changes them; of a BLIP also the task, and which
            blocks merge the cross-attentions to two images.
        vision, text: activation and epsilon.
        drops: token drops of the vision tower and of the text encoder.
    """

    sizes: EncoderShape
    vision: TowerSettings
    text: TowerSettings
    drops: tuple[DropPlan, ...] = ()

    def drop(self, part: Part, after_layer: int) -> DropPlan | None:
        """The drop at a place, if there is one."""
        return next((d for d in self.drops if d.place == (part, after_layer)), None)

    def pruned(self: T, plan: PruningPlan) -> T:
        """Return the shape after ``plan`` is applied.

        Raises:
            CompExportError: the plan is of another model, or the checkpoint is compressed already.
        """
        found = SlimShape(self.sizes, self.sizes, self.drops).planned(plan)
        return replace(self, sizes=found.slim, drops=found.drops)


def check_family(config: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse a configuration that is not of a family; ``where`` names it in errors.

    Raises:
        CompExportError: it is of another family.
    """
    family = family_of(config.get("model_type"))
    if family is None or family.name != name:
        raise CompExportError(f"{where}: model_type is {config.get('model_type')!r}, not {name!r}")


def tower_settings(
    config: Mapping[str, Any], part: str, where: str, act: str, epsilon: float
) -> TowerSettings:
    """Read those of ``config[part]``; ``act`` and ``epsilon`` are the defaults of transformers.

    Raises:
        CompExportError: the graphs do not support the activation.
    """
    values = config.get(part) or {}
    activation = values.get("hidden_act") or act
    if activation not in ACTIVATIONS:
        raise CompExportError(
            f"{where}: {part}.hidden_act is {activation!r}: supported are {', '.join(ACTIVATIONS)}"
        )
    return TowerSettings(activation, values.get("layer_norm_eps") or epsilon)
