"""Read a study file, and refuse its errors before anything runs."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from comp.checkpoints.llava_shape import config_of
from comp.checkpoints.locate import ALIASES, EMBEDDED
from comp.errors import CompExportError
from comp.registry.families import family_of
from comp.registry.family import Family
from comp.registry.methods import METHODS
from comp.registry.modes import SHORT_MODES, mode_names
from comp.utils.json_files import read_text
from comp.utils.similar import suggestion
from serve.study.grid import Row, prune_options_of, rows_of
from serve.study.schema import BUDGET, BenchTable, EvaluationTable, PruneTable, Study, Variant

TABLES: dict[str, type[BaseModel]] = {
    "prune": PruneTable,
    "evaluation": EvaluationTable,
    "bench": BenchTable,
    "variants": Variant,
}
# Parts of CoMP: another method does not have them to leave out.
OF_COMP = frozenset(
    {"no_cip", "no_cit", "no_cas", "no_exploration", "no_history", "no_reconstruction"}
    | {"exploration", "temperature", "history", "cost", "latency_table", "race", "train_stages"}
)
ROW_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        CompExportError: it cannot be read or is not TOML; a key, a method, a model or a mode that is
            not known (names the nearest one that is, and the table); a value of a wrong kind; a
            method that does not fit the model's family.
    """
    try:
        content = _toml(path)
        study = Study.model_validate(content)
    except ValidationError as error:
        raise CompExportError(f"{path}: {_explain(error)}") from error
    try:
        _check(study)
    except CompExportError as error:
        raise CompExportError(f"{path}: {error}") from error
    return study


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``: did you mean 'X'?``, or all names if none is similar."""
    names = list(known)
    return f": {suggestion(word, names) or 'choose from ' + ', '.join(names)}"


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = read_text(path, "give a study, as those in docs/studies/ are")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CompExportError(f"{path} is not TOML: {error}") from error


def _explain(error: ValidationError) -> str:
    """Return the message of the first error, with its table."""
    first = error.errors()[0]
    table, key = _place([str(part) for part in first["loc"]])
    model = TABLES.get(table.partition(".")[0], Study) if table else Study
    where = f"in [{table}]" if table else "at the top"
    if first["type"] == "extra_forbidden":
        if table.startswith("variants.") and key in BUDGET:
            return f"{key!r} {where}: it is the same for every cell, put it into [prune]"
        return f"unknown key {key!r} {where}{nearest(key, model.model_fields)}"
    if first["type"] == "missing":
        return f"{key!r} is missing {where}: give it"
    return f"{key} {where} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _place(parts: list[str]) -> tuple[str, str]:
    """Return the table and the key of pydantic's location."""
    depth = 2 if parts[0] == "variants" else 1 if parts[0] in TABLES else 0
    if len(parts) <= depth:  # the table itself is wrong
        return ".".join(parts[:-1]), parts[-1]
    return ".".join(parts[:depth]), parts[depth]


def _check(study: Study) -> None:
    rows = rows_of(study)
    if not rows:
        known = ", ".join(method.name for method in METHODS)
        raise CompExportError(f"no rows: give methods ({known}) or [variants.NAME]")
    for what, values in (
        ("rates", study.rates),
        ("seeds", study.seeds),
        ("methods", study.methods),
    ):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise CompExportError(f"{what} has {twice!r} twice: name each once")
    wrong = next((rate for rate in study.rates if not 0 < rate < 1), None)
    if wrong is not None:
        raise CompExportError(
            f"rate {wrong:g} is outside (0, 1): it is the share of FLOPs to remove, such as 0.8"
        )
    if min(study.seeds) < 0:
        raise CompExportError(f"seed {min(study.seeds)} is negative: give 0 or more")
    _check_data(study)
    family, modes = _model(study.model)
    _check_modes(study.prune.model_dump().get("modes"), "in [prune]", family, modes)
    for row in rows:
        _check_row(study, row, family, modes)
    names = [row.name for row in rows]
    if study.reference is not None and study.reference not in names:
        raise CompExportError(
            f"unknown reference {study.reference!r}{nearest(study.reference, names)}"
        )


def _check_data(study: Study) -> None:
    for images, data, key in (
        (study.images, study.data, "data"),
        (study.test_images, study.test_data, "test_data"),
    ):
        if images is not None and data is None:
            raise CompExportError(
                f"images {images!r} without {key}: name the file with the examples"
            )
    if study.data is None:
        if study.test_data is not None:
            raise CompExportError(
                f"test_data {study.test_data!r} without data to train on: name it"
            )
        return
    from comp.data.loading import data_format

    data_format(Path(study.data))  # refuses a file that prune would refuse in every cell


def _model(name: str) -> tuple[Family, tuple[str, ...]]:
    """Return the family of a model, and its modes."""
    known = (*EMBEDDED, *ALIASES)
    if name not in known and "/" not in name and not Path(name).is_dir():
        raise CompExportError(
            f"unknown model {name!r}{nearest(name, known)} (a directory or a hub id will do too)"
        )
    config = config_of(name)
    family = family_of(config.get("model_type"))
    if family is None:
        raise CompExportError(f"{name}: models of type {config.get('model_type')!r} are not pruned")
    lacking = family.lacks.get((config.get("architectures") or [""])[0], ())
    return family, tuple(mode for mode in family.modes if mode not in lacking)


def _check_row(study: Study, row: Row, family: Family, modes: tuple[str, ...]) -> None:
    where = "in methods" if row.name in study.methods else f"in [variants.{row.name}]"
    method = next((method for method in METHODS if method.name == row.method), None)
    if method is None:
        known = [method.name for method in METHODS]
        raise CompExportError(f"unknown method {row.method!r} {where}{nearest(row.method, known)}")
    if row.name in study.variants and row.name in study.methods:
        raise CompExportError(f"variant {row.name!r} has the name of a method: choose another")
    if not ROW_NAME.fullmatch(row.name):
        raise CompExportError(
            f"variant {row.name!r}: a name has lower-case letters, digits, - and _, as folders are "
            "named by it"
        )
    if not method.takes(family):
        raise CompExportError(
            f"method {row.method!r} {where} is not for {family.name} models such as {study.model}: "
            f"{method.why_not(family)}"
        )
    foreign = next((key for key in row.options if key in OF_COMP and row.method != "comp"), None)
    if foreign is not None:
        raise CompExportError(f"{foreign!r} {where}: it is an option of comp, not of {row.method}")
    _check_modes(row.options.get("modes"), where, family, modes)
    named = prune_options_of(study, row).get("modes")
    try:
        method.modes_among(modes if named is None else mode_names(named), family)
    except CompExportError as error:
        raise CompExportError(f"method {row.method!r} {where}: {error}") from error


def _check_modes(given: str | None, where: str, family: Family, modes: tuple[str, ...]) -> None:
    if given is None:
        return
    for name in mode_names(given):
        if name not in modes:
            short = [key for key, mode in SHORT_MODES.items() if mode in modes]
            near = nearest(name, modes if "_" in name else short)
            raise CompExportError(f"unknown mode {name!r} of {family.name} {where}{near}")
