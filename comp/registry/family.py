"""The record of a family of models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Distill = Literal["none", "logits", "features", "both"]  # see ``comp.training.distillation``


@dataclass(frozen=True)
class Teaching:
    """Default training of a small model, chosen by validation on the embedded ones.

    Attributes:
        distill, weight: outputs of the dense model that it learns from, and the weight of that loss; the
            task's loss has weight 1.
        recover_lr: peak learning rate of recovery.
        tower: factor on the learning rate for the image tower.
    """

    distill: Distill
    weight: float = 1.0
    recover_lr: float = 5e-4
    tower: float = 1.0


@dataclass(frozen=True)
class Family:
    """A family of models: its configurations, its features, and the names of its code.

    Attributes:
        model_types: values of ``model_type``; the first is that of dense models, in transformers; the others
            are those of slim models.
        teaching: default training of its models, except of architectures in ``taught``.
        race: default steps of recovery before searches are compared (``comp.pipeline.race``).
        lacks: modes that models of an architecture do not have.
        reads_image_tokens: the language part is a causal model of image and text tokens, the former from an
            image tower and a projector. The other families have an encoder for each.
        merges_in_proportion: attention can be raised by the number of merged tokens.
        streams: the matrices of a large model can stay in their files or be spread over GPUs, and a plan is
            applied without the model in memory.
        prunes_again: a slim model can be pruned again.
        image_processor: class, if a checkpoint's files name none.
        processor: class of transformers that reads the files of slim checkpoints.
        load_processor: loads the processor of a checkpoint; by default ``AutoProcessor`` does.
        slim_architecture: class of slim models, if they are written without a model in memory.
        prefixes: beginnings of tensor names in torch after ``model.``, where they differ from a LLaVA's, and
            these.
        tower_names: parts of the names in the image tower, in torch and in a LLaVA, where they differ.
        ties: whether a configuration without the flag ties output layer and word embedding.
        slim: by module of transformers with the dense classes, our module that registers the slim ones.
        checkpoint: the ``CheckpointFormat`` that loads it (``comp.families.checkpoint``).
        shape: class of its sizes, read from a configuration.
        tensor_name: returns the name in artifacts of a tensor, from its name in torch.
        latency: the sum of times of blocks (``comp.latency.request.Request``), if tables can be measured.
        blocks: reads a checkpoint as the graphs that ``profile`` measures (``export.latency.blocks``).
        export: reads a checkpoint as a ``FamilyExport``.
        manifest, artifact: classes of the files that an export writes.
        verification: the comparison of artifacts with torch (``export.proof.families.Verification``).
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
    processor: str | None = None
    load_processor: str | None = None
    slim_architecture: str | None = None
    prefixes: tuple[tuple[str, str], ...] = ()
    tower_names: tuple[tuple[str, str], ...] = ()
    ties: bool = False
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
        """Whether a ``model_type`` is that of a slim model of this family."""
        return model_type in self.model_types[1:]

    def defaults_of(self, architecture: str) -> tuple[str, ...]:
        """Return the default modes of models of an architecture."""
        lacking = self.lacks.get(architecture, ())
        return tuple(mode for mode in self.default_modes if mode not in lacking)

    def teaching_of(self, architecture: str) -> Teaching:
        """Return the default training of models of an architecture."""
        return self.taught.get(architecture, self.teaching)

    def described(self) -> dict[str, Any]:
        """Return the choices of a user and their defaults, without the names of code."""
        names = (
            *("name", "model_types", "description", "modes", "default_modes", "exports"),
            *("taught", "lacks", "race"),
        )
        choices = {name: getattr(self, name) for name in names}
        taught = {name: vars(teaching) for name, teaching in self.taught.items()}
        return choices | {"teaching": vars(self.teaching), "taught": taught}
