"""What there is to choose from: families of models, tasks and pruning methods, described without torch.

A family is one record. It names its code in each package as ``module:attribute``, which the package
imports when it needs it (``resolve``): nothing here imports a family, and ``comp`` imports no package above
it. Tests hold these lines against the adapters in ``comp/families`` and the files in ``comp/methods``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from typing import Any, Literal

from comp.errors import CompExportError

# What a mode prunes: the last word of its name; image tokens alone are the mode itself.
Kind = Literal["parameters", "tokens", "vision_tokens"]
Distill = Literal["none", "logits", "features", "both"]  # see ``comp.training.distillation``
CostMetric = Literal["accuracy", "loss"]  # what Eq. 8 compares: see ``comp.search.strategy``


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
class TaskEntry:
    """A task of models, whatever their family.

    Attributes:
        measure: makes the measure of an engine's answers (``serve.evaluation.scores.Measure``).
        view: builds the demo's page.
    """

    measure: str
    view: str


@dataclass(frozen=True)
class Family:
    """A family of models: which configurations belong to it, what can be done with them, and its code.

    Attributes:
        model_types: of configurations; the first is that of transformers' own, dense models, the others
            are of slim ones.
        teaching: how its models are trained, but for those of an architecture in ``taught``.
        race: steps of recovery before searches are compared (``comp.pipeline.race``), unless asked otherwise.
        lacks: modes that models of an architecture do not have.
        reads_image_tokens: the language part is a causal model of image and text tokens, which a projector
            of an image tower hands to it; the other families are encoders of either.
        merges_in_proportion: attention can be raised by what merged tokens stand for.
        streams: the matrices of a large model can stay in their files or be spread over GPUs, and a plan is
            carried out without the model in memory.
        prunes_again: a slim model can be pruned once more.
        image_processor: class where a checkpoint's files name none.
        slim: by transformers' module that dense models are defined in, ours that registers the slim ones.
        checkpoint: the ``CheckpointFormat`` that loads it (``comp.families.checkpoint``).
        shape: class of its sizes, read from a configuration.
        tensor_name: gives the name of a tensor in artifacts, by that in torch.
        latency: how times of blocks add up (``comp.latency.request.Request``), where tables can be measured.
        blocks: reads a checkpoint as the graphs that ``profile`` measures (``export.latency.blocks``).
        export: reads a checkpoint as a ``FamilyExport``.
        manifest, artifact: classes of what an export writes.
        verification: how artifacts are compared with torch (``export.verify.families.Verification``).
        engine_profiles: module with the limits, graphs and caches of TensorRT's engines.
        engines: by task, the class that runs an artifact.
        auto_models: by task, transformers' class that loads a checkpoint; without one it is the class that
            the configuration names.
    """

    name: str
    model_types: tuple[str, ...]
    description: str
    modes: tuple[str, ...]
    default_modes: tuple[str, ...]
    exports: tuple[str, ...]
    teaching: Teaching
    checkpoint: str
    shape: str
    export: str
    manifest: str
    artifact: str
    verification: str
    engine_profiles: str
    engines: Mapping[str, str]
    image_processor: str
    auto_models: Mapping[str, str] = field(default_factory=dict)
    slim: Mapping[str, str] = field(default_factory=dict)
    tensor_name: str = "builtins:str"
    latency: str | None = None
    blocks: str | None = None
    taught: dict[str, Teaching] = field(default_factory=dict)
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    race: int = 0
    reads_image_tokens: bool = False
    merges_in_proportion: bool = False
    streams: bool = False
    prunes_again: bool = False

    @property
    def dense_type(self) -> str:
        """``model_type`` of its dense models, which transformers knows."""
        return self.model_types[0]

    def is_slim(self, model_type: str | None) -> bool:
        """Whether a ``model_type`` is of this family and of a class of ours."""
        return model_type in self.model_types[1:]

    def defaults_of(self, architecture: str) -> tuple[str, ...]:
        """The default modes of models of an architecture."""
        lacking = self.lacks.get(architecture, ())
        return tuple(mode for mode in self.default_modes if mode not in lacking)

    def teaching_of(self, architecture: str) -> Teaching:
        """How models of an architecture are trained."""
        return self.taught.get(architecture, self.teaching)

    def described(self) -> dict[str, Any]:
        """The choices of a user and their defaults, without the places of the code."""
        names = (
            *("name", "model_types", "description", "modes", "default_modes", "exports"),
            *("taught", "lacks", "race"),
        )
        found = {name: getattr(self, name) for name in names}
        taught = {name: vars(teaching) for name, teaching in self.taught.items()}
        return found | {"teaching": vars(self.teaching), "taught": taught}


@dataclass(frozen=True)
class Method:
    """A pruning method: what it removes, for which families, and why not for the others.

    Attributes:
        prunes: the kinds of modes it works with; modes of other kinds are left alone.
        only: names of the families it is for; none: every family.
        elsewhere: by family that it is not for, the reason.
        spares: by family, modes that are left alone though they are of these kinds.
        together: whether it needs a mode of each kind.
        differentiates: whether it needs gradients even where nothing is trained.
    """

    name: str
    removes: tuple[str, ...]
    prunes: tuple[Kind, ...]
    description: str
    only: tuple[str, ...] | None = None
    elsewhere: dict[str, str] = field(default_factory=dict)
    spares: dict[str, tuple[str, ...]] = field(default_factory=dict)
    together: bool = False
    differentiates: bool = False

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families it is for."""
        return tuple(family.name for family in FAMILIES if self.takes(family))

    def takes(self, family: Family) -> bool:
        """Whether it is for a family."""
        return self.only is None or family.name in self.only

    def why_not(self, family: Family) -> str:
        """The reason why it is not for a family."""
        return self.elsewhere.get(family.name, f"it is only for {', '.join(self.only or ())}")

    def described(self) -> dict[str, Any]:
        """Its fields, and the families it is for."""
        found = {name: value for name, value in vars(self).items() if name != "only"}
        return found | {"families": self.families}

    def modes_among(self, modes: Sequence[str], family: Family) -> tuple[str, ...]:
        """Those of the modes that the method prunes in a model of the family.

        Names that the family does not know are kept, for whoever loads the model to refuse.

        Raises:
            CompExportError: the method is not for the family, or none of the modes is for the method, or
                none of a kind that it needs.
        """
        if not self.takes(family):
            others = ", ".join(m.name for m in METHODS if m.takes(family))
            raise CompExportError(
                f"--method {self.name} is not for {family.name} models: {self.why_not(family)}; "
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
TASKS: dict[str, TaskEntry] = {
    "question": TaskEntry("serve.evaluation.questions:measure", "demo.views.question:build"),
    "caption": TaskEntry("serve.evaluation.captions:measure", "demo.views.caption:build"),
    "statement": TaskEntry("serve.evaluation.statements:measure", "demo.views.statement:build"),
    "retrieval": TaskEntry("serve.evaluation.retrieval:measure", "demo.views.retrieval:build"),
}
FAMILIES: list[Family] = []
"""All that is registered, in order (``register_family``)."""


def register_family(family: Family) -> Family:
    """Make a family known to every package.

    Raises:
        CompExportError: its name or one of its model types is taken.
    """
    for known in FAMILIES:
        taken = [name for name in family.model_types if name in known.model_types]
        if known.name == family.name:
            taken.insert(0, family.name)
        if taken:
            raise CompExportError(
                f"the family {known.name} has {taken[0]!r} already: choose another"
            )
    FAMILIES.append(family)
    return family


register_family(
    Family(
        name="llava",
        model_types=("llava", "comp_llava"),
        description="LLaVA-1.5: CLIP vision tower, MLP projector, Llama language model",
        modes=("vision_tokens", "language_tokens", "language_parameters", "vision_parameters"),
        default_modes=("vision_tokens", "language_tokens", "language_parameters"),
        exports=("slim checkpoint", "onnx", "tensorrt"),
        # The tower knows pictures in general, and short training sees few.
        teaching=Teaching("both", tower=0.1),
        reads_image_tokens=True,
        streams=True,
        prunes_again=True,
        image_processor="LlavaImageProcessor",
        slim={"transformers.models.llava.modeling_llava": "comp.families.llava.slim"},
        checkpoint="comp.families.llava.checkpoint:FORMAT",
        shape="comp.checkpoints.llava_shape:ModelShape",
        tensor_name="comp.checkpoints.tensor_names:canonical_name",
        latency="comp.latency.request:LLAVA",
        blocks="export.latency.llava_blocks:LlavaBlocks.of",
        export="export.families.llava.artifact:llava_artifact",
        manifest="export.artifact.llava_manifest:LlavaManifest",
        artifact="export.artifact.llava_manifest:LlavaArtifact",
        verification="export.verify.llava_torch:VERIFICATION",
        engine_profiles="export.tensorrt.build.llava_profiles",
        engines={"question": "serve.engines.llava:Engine"},
        auto_models={"question": "AutoModelForImageTextToText"},
    )
)
register_family(
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
        merges_in_proportion=True,
        image_processor="CLIPImageProcessor",
        slim={"transformers.models.clip.modeling_clip": "comp.families.clip.slim"},
        checkpoint="comp.families.clip.checkpoint:FORMAT",
        shape="comp.checkpoints.encoder_shape:EncoderShape",
        latency="comp.latency.request:CLIP",
        blocks="export.latency.clip_blocks:ClipBlocks.of",
        export="export.families.clip.artifact:clip_artifact",
        manifest="export.artifact.encoder_manifest:EncoderManifest",
        artifact="export.artifact.encoder_manifest:EncoderArtifact",
        verification="export.verify.clip:VERIFICATION",
        engine_profiles="export.tensorrt.build.encoder_profiles",
        engines={"retrieval": "serve.engines.retriever:Retriever"},
        auto_models={"retrieval": "AutoModel"},
    )
)
register_family(
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
        image_processor="BlipImageProcessor",
        slim={
            "transformers.models.blip.modeling_blip": "comp.families.blip.slim",
            "transformers.models.blip.modeling_blip_text": "comp.families.blip.nlvr",
        },
        checkpoint="comp.families.blip.checkpoint:FORMAT",
        shape="comp.checkpoints.encoder_shape:EncoderShape",
        export="export.families.blip.artifact:blip_artifact",
        manifest="export.artifact.encoder_manifest:EncoderManifest",
        artifact="export.artifact.encoder_manifest:EncoderArtifact",
        verification="export.verify.blip_torch:VERIFICATION",
        engine_profiles="export.tensorrt.build.encoder_profiles",
        engines={
            "question": "serve.engines.blip_generator:BlipGenerator",
            "caption": "serve.engines.blip_generator:BlipGenerator",
            "statement": "serve.engines.blip_judge:Judge",
            "retrieval": "serve.engines.blip_retriever:BlipRetriever",
        },
        auto_models={
            "caption": "AutoModelForImageTextToText",
            "question": "AutoModelForVisualQuestionAnswering",
            "statement": "AutoModel",  # registered by this package: transformers has no such class
        },
    )
)


def family_of(model_type: str | None) -> Family | None:
    """The family that a configuration's ``model_type`` belongs to."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_called(name: str) -> Family | None:
    """The family of this name, where one is registered."""
    return next((family for family in FAMILIES if family.name == name), None)


def resolve(path: str) -> Any:
    """Import the code that a record names: ``module:attribute``, or a module."""
    module, _, names = path.partition(":")
    return reduce(getattr, names.split(".") if names else (), import_module(module))


def _of_image_tokens(name: str, description: str) -> Method:
    """A method that drops image tokens in the language model of a LLaVA."""
    reason = "it drops image tokens between the blocks of a language model that reads them"
    return Method(
        name=name,
        removes=("image tokens",),
        prunes=("vision_tokens",),
        only=("llava",),
        description=description,
        elsewhere={"clip": reason, "blip": reason},
    )


def _jointly(name: str, how: str) -> Method:
    """Simple joint pruning in an order."""
    return Method(
        name=name,
        removes=("attention heads", "FFN channels", "tokens"),
        prunes=("parameters", "tokens"),
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
        description="Collaborative multi-mode pruning: importances that weigh each other (CIM), "
        "and a strategy that picks the next mode by its cost (MPS)",
    ),
    Method(
        name="wanda",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        description="Weight magnitude times input norm, the same share of every layer, no training",
    ),
    Method(
        name="upop",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        description="Unified and progressive pruning: masks shrink while the model trains; what goes is "
        "ranked anew by the masks' gradients in every stage",
        differentiates=True,
    ),
    Method(
        name="mope",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
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
        only=("llava",),
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
        only=("clip", "blip"),
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
        only=("clip",),
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
        only=("clip", "blip"),
        description="Attention received, attention of [CLS], and response to a learned dictionary that "
        "both encoders share; what goes is merged into one token",
        elsewhere={
            "llava": "it aligns the tokens of an image encoder with those of a text encoder, and a llava "
            "has no text encoder"
        },
    ),
)


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
