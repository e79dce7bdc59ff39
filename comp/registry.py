"""What there is to choose from: families of models and pruning methods, described without torch.

A test holds these lines against the adapters in ``comp/families`` and the files in
``comp/methods``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from comp.errors import CompExportError

if TYPE_CHECKING:
    pass


# What a mode prunes: the last word of its name; image tokens alone are the mode itself.
Kind = Literal["parameters", "tokens", "vision_tokens"]
Distill = Literal["none", "logits", "features", "both"]  # see ``comp.training.distillation``


@dataclass(frozen=True)
class Teaching:
    """How a small model is trained unless asked otherwise; chosen by validation on the embedded ones.

    Attributes:
        distill, weight: what it learns from its dense self, and that loss's weight beside the task's.
        recover_lr: peak learning rate of recovery.
        tower: the learning rate of the image tower, in times of the rest's.
    """

    distill: Distill
    weight: float = 1.0
    recover_lr: float = 5e-4
    tower: float = 1.0


@dataclass(frozen=True)
class Family:
    """A family of models: which configurations belong to it and what can be done with them.

    Attributes:
        teaching: how its models are trained, but for those of an architecture in ``taught``.
        race: steps of recovery before searches are compared (``comp.pipeline.race``), unless asked otherwise.
        lacks: modes that models of an architecture do not have.
    """

    name: str
    model_types: tuple[str, ...]
    description: str
    modes: tuple[str, ...]
    default_modes: tuple[str, ...]
    exports: tuple[str, ...]
    teaching: Teaching
    taught: dict[str, Teaching] = field(default_factory=dict)
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    race: int = 0

    def defaults_of(self, architecture: str) -> tuple[str, ...]:
        """The default modes of models of an architecture."""
        lacking = self.lacks.get(architecture, ())
        return tuple(mode for mode in self.default_modes if mode not in lacking)

    def teaching_of(self, architecture: str) -> Teaching:
        """How models of an architecture are trained."""
        return self.taught.get(architecture, self.teaching)


@dataclass(frozen=True)
class Method:
    """A pruning method: what it removes, for which families, and why not for the others.

    Attributes:
        prunes: the kinds of modes it works with; modes of other kinds are left alone.
        elsewhere: by family that it is not for, the reason.
        spares: by family, modes that are left alone though they are of these kinds.
        together: whether it needs a mode of each kind.
        differentiates: whether it needs gradients even where nothing is trained.
    """

    name: str
    removes: tuple[str, ...]
    prunes: tuple[Kind, ...]
    families: tuple[str, ...]
    description: str
    elsewhere: dict[str, str] = field(default_factory=dict)
    spares: dict[str, tuple[str, ...]] = field(default_factory=dict)
    together: bool = False
    differentiates: bool = False

    def modes_among(self, modes: Sequence[str], family: Family) -> tuple[str, ...]:
        """Those of the modes that the method prunes in a model of the family.

        Names that the family does not know are kept, for whoever loads the model to refuse.

        Raises:
            CompExportError: the method is not for the family, or none of the modes is for the method, or
                none of a kind that it needs.
        """
        if family.name not in self.families:
            others = ", ".join(m.name for m in METHODS if family.name in m.families)
            raise CompExportError(
                f"--method {self.name} is not for {family.name} models: {self.elsewhere[family.name]}; "
                f"choose from {others}"
            )
        fitting = [mode for mode in family.modes if self._fits(mode, family)]
        found = tuple(mode for mode in modes if mode not in family.modes or mode in fitting)
        if not found:
            raise CompExportError(
                f"--method {self.name} prunes {' and '.join(self.prunes)} alone, and --modes names only "
                f"{', '.join(modes)}: name some of {', '.join(fitting)}, or choose another --method"
            )
        lacking = next((k for k in self.prunes if self.together and not _any_of(k, found)), None)
        if lacking is not None and all(mode in fitting for mode in found):
            missing = ", ".join(mode for mode in fitting if _any_of(lacking, [mode]))
            raise CompExportError(
                f"--method {self.name} prunes {' and '.join(self.prunes)} together, and --modes names "
                f"none of {lacking} in {', '.join(modes)}: name some of {missing}, or choose another "
                "--method"
            )
        return found

    def _fits(self, mode: str, family: Family) -> bool:
        spared = mode in self.spares.get(family.name, ())
        return not spared and any(_any_of(kind, [mode]) for kind in self.prunes)


def _any_of(kind: Kind, modes: Sequence[str]) -> bool:
    """Whether some of the modes are of a kind."""
    return any(kind in (mode, mode.rpartition("_")[2]) for mode in modes)


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
        # The tower knows pictures in general, and short training sees few.
        teaching=Teaching("both", tower=0.1),
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
        teaching=Teaching("both"),
        race=4,
    ),
    Family(
        name="blip",
        model_types=("blip", "comp_blip", "comp_blip_nlvr"),
        description="BLIP for captions, questions, retrieval, or statements about two images (NLVR2)",
        modes=BLIP_MODES,
        default_modes=BLIP_MODES,
        exports=("slim checkpoint", "onnx", "tensorrt"),
        teaching=Teaching("none"),
        # Whether a statement is true is the parity of what it says and of two pictures: labels alone teach
        # nothing back, and the dense model's features do.
        taught={"BlipForNlvr2": Teaching("features", weight=10.0, recover_lr=1e-3)},
        lacks={"BlipForConditionalGeneration": ("language_tokens",)},
    ),
)


LATENCY_FAMILIES = ("llava", "clip")
"""Those whose blocks ``profile`` measures, and that ``prune --cost latency`` takes."""


def _of_image_tokens(name: str, description: str) -> Method:
    """A method that drops image tokens in the language model of a LLaVA."""
    reason = "it drops image tokens between the blocks of a language model that reads them"
    return Method(
        name=name,
        removes=("image tokens",),
        prunes=("vision_tokens",),
        families=("llava",),
        description=description,
        elsewhere={"clip": reason, "blip": reason},
    )


def _jointly(name: str, how: str) -> Method:
    """Simple joint pruning in an order."""
    return Method(
        name=name,
        removes=("attention heads", "FFN channels", "tokens"),
        prunes=("parameters", "tokens"),
        families=("llava", "clip", "blip"),
        description="Simple joint pruning: parameters as upop, tokens as pdrop (LLaVA) or madtp, "
        f"uncoordinated, {how}",
        spares={"llava": ("language_tokens",)},
        together=True,
        differentiates=True,
    )


METHODS = (
    Method(
        name="comp",
        removes=("attention heads", "FFN channels", "tokens"),
        prunes=("parameters", "tokens"),
        families=("llava", "clip", "blip"),
        description="Collaborative multi-mode pruning: importances that weigh each other (CIM), "
        "and a strategy that picks the next mode by its cost (MPS)",
    ),
    Method(
        name="wanda",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        families=("llava", "clip", "blip"),
        description="Weight magnitude times input norm, the same share of every layer, no training",
    ),
    Method(
        name="upop",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        families=("llava", "clip", "blip"),
        description="Unified and progressive pruning: masks shrink while the model trains; what goes is "
        "ranked anew by the masks' gradients in every stage",
        differentiates=True,
    ),
    Method(
        name="mope",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        families=("llava", "clip", "blip"),
        description="Module-wise pruning error: what the loss rises by without a module; width first, "
        "then depth, no training",
    ),
    _jointly("sjp", "in every stage"),
    _jointly("sjp-sequential", "one after the other, in half of the stages each"),
    _of_image_tokens(
        "fastv", "Once, after two layers: the least attended by the last token, heads averaged"
    ),
    _of_image_tokens(
        "pdrop", "The same share at three depths, ranked by the attention of the layer that follows"
    ),
    _of_image_tokens(
        "dart",
        "Once, after two layers: those that repeat a few pivot tokens, whatever attends to them",
    ),
    Method(
        name="visionzip",
        removes=("image tokens",),
        prunes=("vision_tokens",),
        families=("llava",),
        description="Behind the vision tower: the tokens that [CLS] attends to most, and a few that all "
        "others are merged into, no training",
        elsewhere=dict.fromkeys(
            ("clip", "blip"),
            "it leaves out tokens between an image encoder and the language model that reads them; turbo "
            "and madtp drop them within the encoder",
        ),
    ),
    Method(
        name="turbo",
        removes=("tokens",),
        prunes=("tokens",),
        families=("clip", "blip"),
        description="Attention of [CLS] less redundancy; what goes is merged into what is most like it, "
        "no training",
        elsewhere={
            "llava": "its language model sees image and text tokens in one causal sequence, where none is "
            "[CLS] and a merged token would tell earlier ones of later ones"
        },
    ),
    Method(
        name="crossget",
        removes=("tokens",),
        prunes=("tokens",),
        families=("clip",),
        description="As many tokens at every block: those most like another and least like what [CLS] asks "
        "for, merged; attention counts what a token stands for; no training",
        elsewhere={
            "llava": "it merges tokens within an image encoder, which is a small part of what a llava costs; "
            "visionzip merges them behind it",
            "blip": "only attention in clip's towers is raised by what merged tokens stand for; turbo merges "
            "without that",
        },
    ),
    Method(
        name="madtp",
        removes=("tokens",),
        prunes=("tokens",),
        families=("clip", "blip"),
        description="Attention received, attention of [CLS], and response to a learned dictionary that "
        "both encoders share; what goes is merged into one token",
        elsewhere={
            "llava": "it aligns the tokens of an image encoder with those of a text encoder, and a llava "
            "has no text encoder"
        },
    ),
)


def family_of(model_type: str | None) -> Family | None:
    """The family that a configuration's ``model_type`` belongs to."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def method_called(name: str) -> Method:
    """The method of this name, which is one of ``METHODS``."""
    return next(method for method in METHODS if method.name == name)


SHORT_MODES = {
    "vt": "vision_tokens",
    "lt": "language_tokens",
    "lp": "language_parameters",
    "vp": "vision_parameters",
    "cp": "cross_parameters",
}


def mode_names(modes: str) -> tuple[str, ...]:
    """The long names of modes given by comma.

    Raises:
        CompExportError: there are none.
    """
    names = [
        SHORT_MODES.get(mode.strip(), mode.strip()) for mode in modes.split(",") if mode.strip()
    ]
    if not names:
        raise CompExportError("--modes names no mode: give at least one of vt, lt, lp, vp, cp")
    return tuple(dict.fromkeys(names))
