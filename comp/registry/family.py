"""The record of a family of models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
        verification: how artifacts are compared with torch (``export.proof.families.Verification``).
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
