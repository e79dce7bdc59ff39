"""What there is to choose from: families of models and pruning methods, described without torch.

A test holds these lines against the adapters in ``comp/families`` and the files in
``comp/methods``.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of models: which configurations belong to it and what can be done with them."""

    name: str
    model_types: tuple[str, ...]
    description: str
    modes: tuple[str, ...]
    default_modes: tuple[str, ...]
    exports: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A pruning method: what it removes, and for which families."""

    name: str
    removes: tuple[str, ...]
    families: tuple[str, ...]
    description: str


FAMILIES = (
    Family(
        name="llava",
        model_types=("llava", "comp_llava"),
        description="LLaVA-1.5: CLIP vision tower, MLP projector, Llama language model",
        modes=("vision_tokens", "language_tokens", "language_parameters", "vision_parameters"),
        default_modes=("vision_tokens", "language_tokens", "language_parameters"),
        exports=("slim checkpoint", "onnx", "tensorrt"),
    ),
    Family(
        name="clip",
        model_types=("clip", "comp_clip"),
        description="CLIP: image and text towers, compared by their embeddings",
        modes=("vision_tokens", "language_tokens", "vision_parameters", "language_parameters"),
        default_modes=(
            "vision_tokens",
            "language_tokens",
            "vision_parameters",
            "language_parameters",
        ),
        exports=("slim checkpoint", "onnx", "tensorrt"),
    ),
)

METHODS = (
    Method(
        name="comp",
        removes=("attention heads", "FFN channels", "tokens"),
        families=("llava", "clip"),
        description="Collaborative multi-mode pruning: importances that weigh each other (CIM), "
        "and a strategy that picks the next mode by its cost (MPS)",
    ),
)


def family_of(model_type: str | None) -> Family | None:
    """The family that a configuration's ``model_type`` belongs to."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
