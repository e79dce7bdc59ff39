"""Frozen models of the tables of a study file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from comp.pipeline.options import PruneOptions

# The study itself says these to prune.
OWNED = frozenset({"model", "rate", "method", "data", "images", "follow_links", "seed"})
# What training costs: the same for every cell, so that methods are compared and not budgets.
BUDGET = frozenset(
    {"stages", "steps_per_stage", "recover", "recover_steps", "batch_size", "lr", "recover_lr"}
    | {"tower_lr", "lora_rank", "calibration", "validation", "dtype", "device_map"}
)


class Table(BaseModel):
    """A table of the file: unknown keys and values of another type are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def prune_options() -> dict[str, FieldInfo]:
    """The options of ``comp-export prune`` that a study may set, by their key in a file."""
    return {name: field for name, field in PruneOptions.model_fields.items() if name not in OWNED}


def _fields(without: frozenset[str]) -> dict[str, Any]:
    """Return these options as optional fields; without them prune takes its defaults."""
    return {
        key: (_type_of(field) | None, Field(None, description=field.description))
        for key, field in prune_options().items()
        if key not in without
    }


def _type_of(field: FieldInfo) -> Any:
    """Return the type of an option's values in a file, with its range; paths are text there."""
    kind: Any = str if field.annotation == Path | None else field.annotation
    for mark in field.metadata:
        kind = Annotated[kind, mark]
    return kind


if TYPE_CHECKING:

    class PruneTable(Table):
        """``[prune]``: options of prune for every cell; others have prune's defaults."""

    class Variant(Table):
        """``[variants.NAME]``: a method, and the options in which this row differs."""

        method: str

else:
    # Made from the options, so that what prune learns a study may vary.
    PruneTable = create_model("PruneTable", __base__=Table, **_fields(frozenset()))
    Variant = create_model("Variant", __base__=Table, method=(str, "comp"), **_fields(BUDGET))


class EvaluationTable(Table):
    """``[evaluation]``: options of the evaluation on the test split; see ``comp-export eval``."""

    limit: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    gallery: int = Field(default=200, ge=2)


class BenchTable(Table):
    """``[bench]``: options of the measurement of time; see ``comp-export bench``."""

    warmup: int = Field(default=3, ge=0)
    repeats: int = Field(default=20, ge=1)
    new_tokens: int = Field(default=8, ge=2)
    threads: int | None = Field(default=None, ge=1)


class Study(Table):
    """A study file.

    Attributes:
        methods: rows of the table by method; ``variants`` are further rows.
        reference: the row that the others are compared with; by default ``comp``, if it is a row.
        data, images: own data to train on; by default EmojiScenes.
        follow_links: also read images through links that lead out of ``images`` and ``test_images``.
        test_data, test_images: other examples to measure accuracy on; by default the test part that the runs
            put aside of ``data``, or its test split.
        tolerance: largest difference of the FLOPs left from the target, as a share of the target.
        keep_runs: keep checkpoints and graphs of finished cells.
    """

    model: str
    rates: Annotated[tuple[float, ...], Field(min_length=1, strict=False)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    methods: Annotated[tuple[str, ...], Field(strict=False)] = ()
    reference: str | None = None
    data: str | None = None
    images: str | None = None
    follow_links: bool = False
    test_data: str | None = None
    test_images: str | None = None
    tolerance: float = Field(default=0.01, gt=0, lt=1)
    keep_runs: bool = False
    prune: PruneTable = PruneTable()
    evaluation: EvaluationTable = EvaluationTable()
    bench: BenchTable = BenchTable()
    variants: dict[str, Variant] = {}
