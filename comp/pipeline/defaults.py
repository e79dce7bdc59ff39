"""Defaults of a pruning run that depend on the model."""

from typing import TYPE_CHECKING

from comp.errors import CompExportError
from comp.registry import Teaching

if TYPE_CHECKING:
    from comp.registry import Family


ALIGN_LARGE, ALIGN_SMALL, LARGE_WIDTH = 64, 16, 2048


# A stage is a few steps of a new optimiser: at the rate of recovery, eight cost dense tiny-llava 15 points.
SMALL_LR = 1e-4


def learning_rates(
    lr: float | None, recover_lr: float | None, large: bool, adapted: bool, small_recover_lr: float
) -> tuple[float, float]:
    """Peak rates while pruning and of recovery: those given, or what suits the model's size.

    Args:
        lr, recover_lr: given, if they are.
        large: the model's FFNs are wide.
        adapted: a large one is trained by LoRA.
        small_recover_lr: what suits a small one in recovery.
    """
    if large:
        default = 2e-4 if adapted else 2e-5
        return lr or default, recover_lr or lr or default
    return lr or SMALL_LR, recover_lr or lr or small_recover_lr


def tower_rate(given: float | None, family: "Family", teaching: Teaching) -> float:
    """What the image tower's learning rate is multiplied by.

    Raises:
        CompExportError: one is given, and the family has no such tower.
    """
    if given is None:
        return teaching.tower
    if family.name != "llava" and given != 1:
        raise CompExportError(
            f"--tower-lr {given:g} is for the image tower of a llava, and this is a {family.name}: leave "
            "it out"
        )
    return given


def _of_model(model: str) -> tuple["Family", tuple[str, ...], int, Teaching]:
    """The family of a model, its default modes, its widest FFN that may be cut by default, its training."""
    from comp.checkpoints.encoder_shape import EncoderShape
    from comp.checkpoints.llava_shape import ModelShape, config_of
    from comp.registry import FAMILIES, family_of

    config = config_of(model)
    family = family_of(config.get("model_type"))
    if family is None:
        known = ", ".join(kind for each in FAMILIES for kind in each.model_types)
        raise CompExportError(
            f"{model}: model_type is {config.get('model_type')!r}: what can be pruned is {known}"
        )
    if family.name == "llava":
        widest = max(ModelShape.from_config(config, model).channels)
        return family, family.default_modes, widest, family.teaching
    if config.get("pruning"):
        raise CompExportError(
            f"{model} is pruned already: prune the dense {family.name} model it was made of"
        )
    shape = EncoderShape.from_config(config, model)
    architecture = (config.get("architectures") or [""])[0]
    widest = max(block.channels for block in (*shape.vision.blocks, *shape.text.blocks))
    return family, family.defaults_of(architecture), widest, family.teaching_of(architecture)
