"""The options of pruning, declared once.

``PruneOptions`` defines the options of ``comp-export prune``, their help and its groups, the values that
``--faithful`` sets, the keys of a study file, the entry ``options`` of ``run.json``, and the keyword
arguments of the Python API. An option that is None gets a default that depends on the model:
``comp.pipeline.defaults``. This module loads neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from comp.errors import CompExportError
from comp.plan import RateOf
from comp.registry.families import FAMILIES
from comp.registry.family import Distill
from comp.registry.importances import IMPORTANCES
from comp.registry.methods import METHODS, method_called
from comp.search.strategy import CostMetric
from comp.utils.option_fields import HARDWARE, OneOf, OptionGroup, marks_of, refused
from comp.utils.similar import unknown_name

Recovery = Literal["auto", "full", "lora", "none"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

LARGEST_SEED = 2**63 - 1  # of torch; numpy takes no negative ones


REMOVE = OptionGroup("What to remove")
DATA = OptionGroup("Data")
TRAINING = OptionGroup("Training")
SEARCH = OptionGroup("Search")
EXPERIMENTAL = OptionGroup("Experimental")
GROUPS = (REMOVE, DATA, TRAINING, SEARCH, HARDWARE, EXPERIMENTAL)  # in the order of the help


@dataclass(frozen=True)
class Paper:
    """Mark of an option that ``faithful`` sets: its value in the paper's recipe."""

    value: object


def _methods() -> list[str]:
    return [method.name for method in METHODS]


class PruneOptions(BaseModel):
    """Options of a pruning run, as the user gives them.

    Frozen; unknown names are refused. Create them with ``PruneOptions.of``, whose errors are for users.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Annotated[str, REMOVE] = Field(
        "tiny-llava", description="Embedded model, directory or hub id."
    )
    rate: Annotated[float, REMOVE] = Field(
        description="Share of the model's FLOPs, or with --cost latency of its time, to remove, in (0, 1)."
    )
    method: Annotated[str, OneOf(_methods), Paper("comp"), REMOVE] = Field(
        "comp", description="Pruning method: see docs/explanation/methods.md."
    )
    faithful: Annotated[bool, REMOVE] = Field(
        default=False,
        description="Use the paper's recipe instead of the defaults; refuse options that contradict it.",
    )
    modes: Annotated[str | None, REMOVE] = Field(
        None,
        description="Modes to prune, separated by commas: vt, lt (tokens), lp, vp, cp (parameters; cp: "
        "cross-attention of BLIP); short or long names [all modes of the model; for LLaVA vt,lt,lp]. Methods "
        "that remove only tokens, or only parameters, ignore the other modes.",
    )
    data: Annotated[Path | None, DATA] = Field(
        None,
        description="Your own data (docs/how-to/your-own-model.md): LLaVA-Instruct, VQAv2, Karpathy's JSON, "
        "NLVR2, or JSONL [default: EmojiScenes].",
    )
    images: Annotated[Path | None, DATA] = Field(None, description="Folder of --data's images.")
    follow_links: Annotated[bool, DATA] = Field(
        default=False,
        description="Also read images through links that lead out of the folder of --images.",
    )
    stages: Annotated[int, SEARCH] = Field(8, ge=1, description="Stages of the search.")
    steps_per_stage: Annotated[int, TRAINING] = Field(
        12, ge=0, description="Training steps per stage."
    )
    recover: Annotated[Recovery, TRAINING] = Field(
        "auto",
        description="Fine-tuning after the search: auto is LoRA for large models, otherwise full; none "
        "trains nothing, also in the search.",
    )
    recover_steps: Annotated[int, TRAINING] = Field(
        300,
        ge=0,
        description="Training steps of recovery. Those of stages x steps-per-stage that the search does not "
        "take are added.",
    )
    recover_examples: Annotated[int | None, TRAINING] = Field(
        None,
        ge=1,
        description="Number of distinct training examples of recovery. Its batches repeat, and the dense "
        "model computes what it teaches only once for each: steps take less time, and with few examples "
        "the model learns them by heart [all that the steps need].",
    )
    batch_size: Annotated[int, TRAINING] = Field(
        32, ge=1, description="Examples per training step, over all processes."
    )
    lr: Annotated[float | None, TRAINING] = Field(
        None,
        gt=0,
        description="Learning rate of the search [1e-4 for small models, 2e-4 for LoRA, otherwise 2e-5].",
    )
    recover_lr: Annotated[float | None, TRAINING] = Field(
        None,
        gt=0,
        description="Learning rate of recovery [that of --lr; if neither is given, 5e-4 for small models "
        "(1e-3 if they judge statements), and the default of --lr for others].",
    )
    tower_lr: Annotated[float | None, TRAINING] = Field(
        None,
        ge=0,
        description="Factor on the learning rate for the image tower of a LLaVA [0.1].",
    )
    lora_rank: Annotated[int, TRAINING] = Field(32, ge=1, description="Rank of LoRA's matrices.")
    calibration: Annotated[int, DATA] = Field(
        64, ge=1, description="Number of calibration examples."
    )
    validation: Annotated[int, DATA] = Field(
        256, ge=1, description="Number of validation examples."
    )
    align: Annotated[int | None, REMOVE] = Field(
        None,
        ge=1,
        description="FFN widths are multiples of this [16 for small models, otherwise 64].",
    )
    dtype: Annotated[DType, HARDWARE] = Field(
        "auto",
        description="Precision of matrix products; auto is bfloat16 if the processor computes it fast, "
        "otherwise float32 on a CPU and float16 on a GPU.",
    )
    device_map: Annotated[Literal["auto"] | None, HARDWARE] = Field(
        None, description="Spread a large model over all GPUs."
    )
    stream: Annotated[bool | None, HARDWARE] = Field(
        None,
        description="Leave the matrices of a LLaVA's decoder in their files and read each when it is used, "
        "for models that do not fit into memory. Needs --recover none [with it, the default for 1e9 "
        "parameters or more on a CPU].",
    )
    distill: Annotated[Distill | None, Paper("none"), TRAINING] = Field(
        None,
        description="Outputs of the dense model that training learns from, in the search and in recovery: "
        "logits, token features, both or none [both; for BLIP none, for its statements features].",
    )
    distill_weight: Annotated[float | None, TRAINING] = Field(
        None,
        gt=0,
        description="Weight of the distillation loss; the task's loss has weight 1 [1; 10 for statements "
        "that learn features by default].",
    )
    distill_temperature: Annotated[float, TRAINING] = Field(
        2.0, gt=0, description="Temperature that softens the logits for distillation."
    )
    exploration: Annotated[float, Paper(0.2), SEARCH] = Field(
        0.2, description="Probability of exploration: rho of Eq. 9."
    )
    temperature: Annotated[float, Paper(5.0), SEARCH] = Field(
        5.0, description="Temperature of exploration: tau of Eq. 9."
    )
    history: Annotated[float, Paper(0.4), SEARCH] = Field(
        0.4, description="Weight of a mode's earlier costs: lambda_0 of Eq. 10."
    )
    cost: Annotated[RateOf, Paper("flops"), REMOVE] = Field(
        "flops",
        description="Unit of the rate and of a mode's cost: multiply-accumulates, or predicted time to first "
        "token (--method comp).",
    )
    latency_table: Annotated[Path | None, REMOVE] = Field(
        None,
        description="Table of `profile` that predicts the time [with --cost latency "
        "runs/latency/MODEL.json]; with --cost flops the predicted time is only recorded.",
    )
    cost_metric: Annotated[CostMetric, Paper("accuracy"), SEARCH] = Field(
        "loss",
        description="Quality that Eq. 8 compares after a stage: the task's metric, or the validation loss.",
    )
    cost_examples: Annotated[int | None, Paper(None), SEARCH] = Field(
        None,
        ge=1,
        description="Number of validation examples that this quality is measured on [64 for loss, all for "
        "accuracy].",
    )
    race: Annotated[int | None, Paper(0), SEARCH] = Field(
        None,
        ge=0,
        description="Search three times: by all --modes, by those of parameters alone and by those of tokens "
        "alone (if these reach the rate). Compare the models after this many steps of recovery, and continue "
        "with the best. The steps of all searches count, so that recovery is shorter (--method comp) [4 "
        "for CLIP, unless --modes is given or steps are few; otherwise 0].",
    )
    no_reconstruction: Annotated[bool, Paper(value=True), SEARCH] = Field(
        default=False,
        description="Do not refit the remaining weights after a cut (--method comp; under LoRA they are "
        "never refitted).",
    )
    train_stages: Annotated[bool | None, Paper(value=True), TRAINING] = Field(
        None,
        description="Train --steps-per-stage while the masks of a stage decay; otherwise recovery gets these "
        "steps (--method comp) [only if weights are not refitted].",
    )
    importance: Annotated[str, OneOf(lambda: list(IMPORTANCES)), Paper("cim"), SEARCH] = Field(
        "cim",
        description="Formula for the importance of heads and channels: cim (Eq. 4), magnitude of weights "
        "alone, or activation norms alone (--method comp).",
    )
    no_cip: Annotated[bool, Paper(value=False), EXPERIMENTAL] = Field(
        default=False, description="Score parameters without token weights."
    )
    no_cit: Annotated[bool, Paper(value=False), EXPERIMENTAL] = Field(
        default=False, description="Score tokens without head masks."
    )
    no_cas: Annotated[bool, Paper(value=False), EXPERIMENTAL] = Field(
        default=False, description="Let modes take turns instead of choosing the cheapest."
    )
    no_exploration: Annotated[bool, Paper(value=False), EXPERIMENTAL] = Field(
        default=False, description="Never draw a mode at random."
    )
    no_history: Annotated[bool, Paper(value=False), EXPERIMENTAL] = Field(
        default=False, description="Forget the costs of earlier stages."
    )
    undo: Annotated[bool, Paper(value=False), EXPERIMENTAL] = Field(
        default=False,
        description="Undo a stage that cost far more than another mode is known to cost, and prune that mode "
        "instead (--method comp; not if stages train, nor for a streamed model).",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Seed of all randomness.")

    @classmethod
    def of(cls, **values: Any) -> "PruneOptions":
        """Check options by name.

        Raises:
            CompExportError: an unknown name, a value out of its range, or options that exclude each other.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise refused(cls, error) from error

    def recorded(self) -> dict[str, Any]:
        """Return all options by name, as JSON values."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _take_recipe(cls, values: Any) -> Any:
        """Use the recipe's values for options that are not given, if ``faithful`` is."""
        if isinstance(values, Mapping) and values.get("faithful"):
            return {**recipe(), **values}
        return values

    @field_validator("modes", mode="before")
    @classmethod
    def _join_modes(cls, modes: Any) -> Any:
        """Take a list of names too."""
        if isinstance(modes, list | tuple) and all(isinstance(mode, str) for mode in modes):
            return ",".join(modes)
        return modes

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, rate: float) -> float:
        if not 0 < rate < 1:
            raise CompExportError(
                f"--rate {rate:g} is outside (0, 1): it is the share of FLOPs (or time) to remove, such as "
                "0.62"
            )
        return rate

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        if method not in _methods():
            raise CompExportError(f"--method {unknown_name(method, _methods())}")
        return method

    @field_validator("importance")
    @classmethod
    def _check_importance(cls, importance: str) -> str:
        if importance not in IMPORTANCES:
            raise CompExportError(f"--importance {unknown_name(importance, IMPORTANCES)}")
        return importance

    @model_validator(mode="after")
    def _check_together(self) -> "PruneOptions":
        """Refuse options that exclude each other for every model."""
        if self.faithful:
            self._check_recipe()
        if self.data is None and (self.images is not None or self.follow_links):
            option = "--follow-links" if self.images is None else f"--images {self.images}"
            raise CompExportError(f"{option} without --data: name the file with the examples")
        if self.method != "comp" and (self.cost == "latency" or self.latency_table is not None):
            option = "--cost latency" if self.cost == "latency" else "--latency-table"
            raise CompExportError(
                f"{option} with --method {self.method}: only comp prunes by time; leave one of them out"
            )
        if self.method != "comp" and self.importance != "cim":
            raise CompExportError(
                f"--importance {self.importance} with --method {self.method}, which has a formula of its "
                "own: leave one of them out"
            )
        if self.race and (self.method != "comp" or self.recover == "none"):
            why = f"--method {self.method}" if self.method != "comp" else "--recover none"
            raise CompExportError(
                f"--race {self.race} with {why}: searches of comp race, and recovery decides; leave one of "
                "them out"
            )
        if self.stream:
            self._check_stream()
        return self

    def _check_recipe(self) -> None:
        for name, value in recipe().items():
            given = getattr(self, name)
            if given != value:
                option = f"--{'no-' * (given is False)}{name.replace('_', '-')}"
                if not isinstance(value, bool):
                    option += f" {given}"
                raise CompExportError(
                    f"{option} is not of the paper's recipe, which --faithful asks for: leave one of them "
                    "out"
                )

    def _check_stream(self) -> None:
        if method_called(self.method).differentiates:
            forward = ", ".join(
                method.name
                for method in METHODS
                if not method.differentiates and any(method.takes(f) for f in FAMILIES if f.streams)
            )
            raise CompExportError(
                f"--stream with --method {self.method}, which needs gradients of the whole model: choose "
                f"from {forward}"
            )
        if self.device_map is not None:
            raise CompExportError(
                f"--stream with --device-map {self.device_map}: a model is read from its files or spread "
                "over GPUs; leave one of them out"
            )


def recipe() -> dict[str, object]:
    """Return the values that ``faithful`` sets, by name. Modes, data, steps and rate are the user's."""
    return {name: mark.value for name, mark in marks_of(PruneOptions, Paper).items()}
