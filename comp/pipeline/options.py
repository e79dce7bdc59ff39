"""The options of pruning, declared once.

From ``PruneOptions`` come the options of ``comp-export prune`` and their help, what ``--faithful`` sets
and refuses, the keys of a study file, the entry ``options`` of ``run.json``, and the keyword arguments of
``prune_model``'s callers. What an option that is left at None stands for depends on the model:
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
from comp.registry.methods import METHODS, method_called
from comp.search.strategy import CostMetric
from comp.utils.option_fields import OneOf, marks_of, refused

Recovery = Literal["auto", "full", "lora", "none"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Paper:
    """Marks an option of the paper's recipe, with its value there: what ``faithful`` sets."""

    value: object


def _methods() -> list[str]:
    return [method.name for method in METHODS]


class PruneOptions(BaseModel):
    """Options of a pruning run, before anything is known of the model.

    Frozen, and without room for unknown names. Use ``PruneOptions.of``, which raises errors for users.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field("tiny-llava", description="Embedded model, directory or hub id.")
    rate: float = Field(
        description="Share of the model's FLOPs, or with --cost latency of its time, to remove, in (0, 1)."
    )
    method: Annotated[str, OneOf(_methods), Paper("comp")] = Field(
        "comp", description="How to choose what is removed: docs/methods.md."
    )
    faithful: bool = Field(
        default=False,
        description="The paper's recipe, whatever the defaults are; refuses options that leave it.",
    )
    modes: str | None = Field(
        None,
        description="What may be pruned: vt, lt (tokens), lp, vp, cp (parameters; cp: cross-attention of "
        "BLIP); short or long names, by comma [all that the model has; of LLaVA vt,lt,lp]. Methods that "
        "remove one kind alone take those of that kind.",
    )
    data: Path | None = Field(
        None,
        description="Own data, as docs/your-own-model.md has it: LLaVA-Instruct, VQAv2, Karpathy's JSON, "
        "JSONL.",
    )
    images: Path | None = Field(None, description="Folder that --data's images lie in.")
    follow_links: bool = Field(
        default=False,
        description="Also take images that links in --images lead to, wherever they lie.",
    )
    stages: int = Field(8, ge=1, description="Stages of the search.")
    steps_per_stage: int = Field(12, ge=0, description="Training steps of a stage.")
    recover: Recovery = Field(
        "auto",
        description="Fine-tuning: auto takes LoRA for large models; none prunes by calibration alone.",
    )
    recover_steps: int = Field(
        300, ge=0, description="Besides those of stages x steps-per-stage that the search leaves."
    )
    batch_size: int = Field(
        32, ge=1, description="Examples of a training step, over all processes."
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="Learning rate while pruning [1e-4 small models, 2e-4 LoRA, 2e-5 others].",
    )
    recover_lr: float | None = Field(
        None,
        gt=0,
        description="Learning rate of recovery [as --lr; where neither is given 5e-4 of small models, 1e-3 "
        "of statements].",
    )
    tower_lr: float | None = Field(
        None,
        ge=0,
        description="Learning rate of a LLaVA's image tower, in times of the rest's [0.1].",
    )
    lora_rank: int = Field(32, ge=1, description="Rank of LoRA's matrices.")
    calibration: int = Field(64, ge=1, description="Calibration examples.")
    validation: int = Field(256, ge=1, description="Validation examples.")
    align: int | None = Field(
        None, ge=1, description="FFN widths are multiples of this [16 small models, 64 others]."
    )
    dtype: DType = Field(
        "auto",
        description="Precision of matrix products; auto is bfloat16 where the processor is fast at it.",
    )
    device_map: Literal["auto"] | None = Field(
        None, description="Spread a large model over all GPUs."
    )
    stream: bool | None = Field(
        None,
        description="Leave the matrices of a LLaVA's decoder in their files and read each when it is used: "
        "for models that do not fit into memory, with --recover none [of 1e9 parameters or more, on a CPU].",
    )
    distill: Annotated[Distill | None, Paper("none")] = Field(
        None,
        description="Learn from the dense model too, in the search and in recovery [both; of BLIP none, of "
        "its statements features].",
    )
    distill_weight: float | None = Field(
        None,
        gt=0,
        description="Of that loss, beside 1 of the task's [1; 10 where statements learn features by "
        "default].",
    )
    distill_temperature: float = Field(2.0, gt=0, description="That softens logits.")
    exploration: Annotated[float, Paper(0.2)] = Field(0.2, description="rho of Eq. 9.")
    temperature: Annotated[float, Paper(5.0)] = Field(5.0, description="tau of Eq. 9.")
    history: Annotated[float, Paper(0.4)] = Field(0.4, description="lambda_0 of Eq. 10.")
    cost: Annotated[RateOf, Paper("flops")] = Field(
        "flops",
        description="What pruning removes, the rate is a share of, and a mode's cost is counted by: "
        "multiply-accumulates, or predicted time to the first token (--method comp).",
    )
    latency_table: Path | None = Field(
        None,
        description="That predicts it, of `profile` [runs/latency/MODEL.json with --cost latency]; with "
        "--cost flops the time is only written down.",
    )
    cost_metric: Annotated[CostMetric, Paper("accuracy")] = Field(
        "loss",
        description="What Eq. 8 compares after a stage: the validation loss, or the metric.",
    )
    cost_examples: Annotated[int | None, Paper(None)] = Field(
        None,
        ge=1,
        description="Validation examples that it is measured on [64 of the loss; all of the metric].",
    )
    race: Annotated[int | None, Paper(0)] = Field(
        None,
        ge=0,
        description="Search by all --modes, by those of parameters and by those of tokens alone (as far as "
        "these reach the rate), compare them after this many steps of recovery, and go on with the best. "
        "The steps of all count: the winner's recovery has fewer (--method comp) [of CLIP 4, unless --modes "
        "is given or steps are few; else 0].",
    )
    no_reconstruction: Annotated[bool, Paper(value=True)] = Field(
        default=False,
        description="After a cut, leave the weights that remain as they are (--method comp; always so under "
        "LoRA).",
    )
    train_stages: Annotated[bool | None, Paper(value=True)] = Field(
        None,
        description="Train while the masks of a stage fade, --steps-per-stage; else recovery gets these "
        "steps (--method comp) [only where nothing is refitted].",
    )
    no_cip: Annotated[bool, Paper(value=False)] = Field(
        default=False, description="Importance of parameters without token weights."
    )
    no_cit: Annotated[bool, Paper(value=False)] = Field(
        default=False, description="Importance of tokens without head masks."
    )
    no_cas: Annotated[bool, Paper(value=False)] = Field(
        default=False, description="Modes take turns instead of cheapest first."
    )
    no_exploration: Annotated[bool, Paper(value=False)] = Field(
        default=False, description="Never draw a mode at random."
    )
    no_history: Annotated[bool, Paper(value=False)] = Field(
        default=False, description="Costs forget earlier stages."
    )
    undo: Annotated[bool, Paper(value=False)] = Field(
        default=False,
        description="Undo a stage that cost far more than another mode is known to, and take that (--method "
        "comp; not stages that train, nor those of a streamed model).",
    )
    seed: int = Field(0, description="Seed of all randomness.")

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
        """All options by name, as JSON has them."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _take_recipe(cls, values: Any) -> Any:
        """``faithful`` makes the recipe the default of what is not given."""
        if isinstance(values, Mapping) and values.get("faithful"):
            return {**recipe(), **values}
        return values

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
            raise CompExportError(f"--method {method}: choose from {', '.join(_methods())}")
        return method

    @model_validator(mode="after")
    def _check_together(self) -> "PruneOptions":
        """Refuse options that exclude each other, whatever the model is."""
        if self.faithful:
            self._check_recipe()
        if self.method != "comp" and (self.cost == "latency" or self.latency_table is not None):
            option = "--cost latency" if self.cost == "latency" else "--latency-table"
            raise CompExportError(
                f"{option} with --method {self.method}: only comp prunes by time; leave one of them out"
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
