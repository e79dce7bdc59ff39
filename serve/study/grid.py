"""The cells of a study: every row at every rate with every seed."""

from dataclasses import dataclass, field
from typing import Any, Literal

from comp.registry.methods import method_called
from comp.registry.modes import mode_names
from serve.study.schema import Study

Removes = Literal["parameters", "tokens", "both"]


@dataclass(frozen=True)
class Row:
    """A method, or a variant of one.

    Attributes:
        options: options of prune in which it differs from the other rows.
    """

    name: str
    method: str
    options: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Cell:
    """One run: a row at one rate with one seed."""

    row: Row
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name}-{self.rate:g}-seed{self.seed}"


def rows_of(study: Study) -> tuple[Row, ...]:
    """Methods in the file's order, then variants."""
    rows = [Row(name, name, {}) for name in study.methods]
    for name, variant in study.variants.items():
        options = variant.model_dump(exclude={"method"}, exclude_none=True)
        rows.append(Row(name, variant.method, options))
    return tuple(rows)


def cells_of(study: Study) -> tuple[Cell, ...]:
    """All cells: the whole table with the first seed before any cell with the second.

    So an interrupted study has results for every row.
    """
    rows = rows_of(study)
    return tuple(
        Cell(row, rate, seed) for seed in study.seeds for rate in study.rates for row in rows
    )


def reference_of(study: Study) -> str | None:
    """The row that others are compared with, if there is one."""
    if study.reference is not None:
        return study.reference
    return "comp" if any(row.name == "comp" for row in rows_of(study)) else None


def prune_options_of(study: Study, row: Row) -> dict[str, Any]:
    """The options of prune for a row; others have prune's defaults."""
    return {**study.prune.model_dump(exclude_none=True), **row.options}


def removes_of(study: Study, row: Row) -> Removes:
    """Return the kinds that a row may remove: those of its method, restricted by its modes."""
    prunes = method_called(row.method).prunes  # kinds, or names of modes
    tokens = any(what.endswith("tokens") for what in prunes)
    parameters = any(what.endswith("parameters") for what in prunes)
    modes = row.options.get("modes", study.prune.model_dump().get("modes"))
    if modes is not None:
        names = mode_names(modes)
        tokens &= any(name.endswith("_tokens") for name in names)
        parameters &= any(name.endswith("_parameters") for name in names)
    return "both" if tokens and parameters else "tokens" if tokens else "parameters"


def settings_of(study: Study, cell: Cell) -> dict[str, Any]:
    """All settings that a cell's result depends on; stored with it."""
    return {
        "model": study.model,
        "data": study.data,
        "images": study.images,
        "test_data": study.test_data,
        "test_images": study.test_images,
        "method": cell.row.method,
        "rate": cell.rate,
        "seed": cell.seed,
        "tolerance": study.tolerance,
        "prune": prune_options_of(study, cell.row),
        "evaluation": study.evaluation.model_dump(),
        "bench": study.bench.model_dump(),
    }


def dense_settings_of(study: Study) -> dict[str, Any]:
    """All settings that the dense model's accuracy depends on."""
    keys = ("model", "data", "images", "test_data", "test_images")
    return {key: getattr(study, key) for key in keys} | {
        "evaluation": study.evaluation.model_dump()
    }
