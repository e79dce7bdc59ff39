"""What there is to choose from: families of models and pruning methods, described without torch.

A test holds these lines against the adapters in ``comp/families`` and the files in
``comp/methods``.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """A family of models: which configurations belong to it and what can be done with them.

    Attributes:
        lacks: modes that models of an architecture do not have.
    """

    name: str
    model_types: tuple[str, ...]
    description: str
    modes: tuple[str, ...]
    default_modes: tuple[str, ...]
    exports: tuple[str, ...]
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def defaults_of(self, architecture: str) -> tuple[str, ...]:
        """The default modes of models of an architecture."""
        lacking = self.lacks.get(architecture, ())
        return tuple(mode for mode in self.default_modes if mode not in lacking)


@dataclass(frozen=True)
class Method:
    """A pruning method: what it removes, and for which families."""

    name: str
    removes: tuple[str, ...]
    families: tuple[str, ...]
    description: str


BLIP_MODES = (
    "vision_tokens",
    "language_tokens",
    "vision_parameters",
    "language_parameters",
    "cross_parameters",
)
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
    Family(
        name="blip",
        model_types=("blip", "comp_blip", "comp_blip_nlvr"),
        description="BLIP for captions, questions, retrieval, or statements about two images (NLVR2)",
        modes=BLIP_MODES,
        default_modes=BLIP_MODES,
        exports=("slim checkpoint", "onnx", "tensorrt"),
        lacks={"BlipForConditionalGeneration": ("language_tokens",)},
    ),
)

METHODS = (
    Method(
        name="comp",
        removes=("attention heads", "FFN channels", "tokens"),
        families=("llava", "clip", "blip"),
        description="Collaborative multi-mode pruning: importances that weigh each other (CIM), "
        "and a strategy that picks the next mode by its cost (MPS)",
    ),
)


def family_of(model_type: str | None) -> Family | None:
    """The family that a configuration's ``model_type`` belongs to."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
