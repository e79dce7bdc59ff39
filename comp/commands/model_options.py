"""Make the options of a command from the fields of a pydantic model."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import annotated_types
import click
from click.core import ParameterSource
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from comp.commands.sections import GroupedOption, NearChoice
from comp.utils.option_fields import OTHER_OPTIONS, OneOf, OptionGroup

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


def model_options(
    model: type[BaseModel],
    without: Collection[str] = (),
    before: Mapping[str, Sequence[Decorator]] | None = None,
) -> Callable[[F], F]:
    """Declare an option for each field; pass the options on the command line as ``given: dict[str, Any]``.

    The model supplies the defaults of the others when it is created from ``given``.

    Args:
        model: its fields become options, in order, with name, type, range, default and description.
        without: fields that are declared elsewhere.
        before: further options of the command, by the field that follows them in ``--help``.
    """
    fields = {name: each for name, each in model.model_fields.items() if name not in without}
    options = [
        option
        for name, field in fields.items()
        for option in (*(before or {}).get(name, ()), option_of(name, field))
    ]

    def declare(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **values: Any) -> Any:
            source = click.get_current_context().get_parameter_source
            chosen = {name: values.pop(name) for name in fields}
            given = {
                name: value
                for name, value in chosen.items()
                if source(name) is not ParameterSource.DEFAULT
            }
            return function(*args, given=given, **values)

        declared: Any = wrapper
        for option in reversed(options):
            declared = option(declared)
        return cast(F, declared)

    return declare


LONG_CHOICE = 40  # characters of a choice that is named in the description instead


def option_of(name: str, field: FieldInfo) -> Decorator:
    """Return the option of a field. ``bool | None`` becomes a pair of flags, ``--x/--no-x``."""
    kind, optional = _kind_of(field)
    flag = _flag(name)
    group = next((each for each in field.metadata if isinstance(each, OptionGroup)), OTHER_OPTIONS)
    settings: dict[str, Any] = {"cls": GroupedOption, "group": group, "help": field.description}
    if kind is bool:
        if optional:
            return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, **settings)
        return click.option(flag, name, is_flag=True, **settings)
    settings["type"] = values = _type_of(kind, field)
    if isinstance(values, click.Choice) and len("|".join(values.choices)) > LONG_CHOICE:
        settings["metavar"] = name.upper()
        settings["help"] = f"{field.description} One of {', '.join(values.choices)}."
    if field.is_required():
        return click.option(flag, name, required=True, **settings)
    default = field.get_default()
    if default is None:
        return click.option(flag, name, **settings)
    return click.option(flag, name, default=default, show_default=True, **settings)


def words_of(name: str, field: FieldInfo, value: Any) -> list[str]:
    """Return the words of a command line that give a field a value."""
    if not isinstance(value, bool):
        return [_flag(name), str(value)]
    if value:
        return [_flag(name)]
    return [f"--no-{_flag(name)[2:]}"] if _kind_of(field)[1] else []


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind_of(field: FieldInfo) -> tuple[Any, bool]:
    """Return the type of a field's values, and whether they may also be None."""
    kind: Any = field.annotation
    if get_origin(kind) not in (Union, UnionType):
        return kind, False
    kinds = [each for each in get_args(kind) if each is not type(None)]
    return kinds[0], len(kinds) < len(get_args(kind))


def _type_of(kind: Any, field: FieldInfo) -> Any:
    """Return click's type for the values of a field.

    Raises:
        TypeError: click has none for this type.
    """
    names = next((mark.names() for mark in field.metadata if isinstance(mark, OneOf)), None)
    if get_origin(kind) is Literal:
        names = get_args(kind)
    if names is not None:
        return NearChoice(list(names))
    if kind is Path:
        return click.Path(path_type=Path)
    limits = _limits(field)
    if kind is int:
        return click.IntRange(**limits) if limits else int
    if kind is float:
        return click.FloatRange(**limits) if limits else float
    if kind is str:
        return str
    raise TypeError(f"no option has values of type {kind}")


def _limits(field: FieldInfo) -> dict[str, Any]:
    """Return the range of a number as arguments of click's ``IntRange`` and ``FloatRange``."""
    limits: dict[str, Any] = {}
    for mark in field.metadata:
        if isinstance(mark, annotated_types.Ge):
            limits |= {"min": mark.ge}
        elif isinstance(mark, annotated_types.Gt):
            limits |= {"min": mark.gt, "min_open": True}
        elif isinstance(mark, annotated_types.Le):
            limits |= {"max": mark.le}
        elif isinstance(mark, annotated_types.Lt):
            limits |= {"max": mark.lt, "max_open": True}
    return limits
