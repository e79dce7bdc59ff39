"""The options of pruning are declared once, for the command line, study files and run.json."""

import types
from typing import Literal, get_args, get_origin

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from comp.cli import cli
from comp.commands.model_options import words_of
from comp.commands.prune import command
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions
from serve.study.schema import OWNED, PruneTable

FIELDS = PruneOptions.model_fields
PARAMETERS = {param.name: param for param in command.params}
RUN = {"out", "force", "resume"}  # where a run is written, not what it does
SHARED = {"device", "as_json", "debug"}  # of all verbs


def test_every_field_is_an_option_and_every_option_a_field():
    assert set(PARAMETERS) - RUN - SHARED == set(FIELDS)
    for name, field in FIELDS.items():
        option = PARAMETERS[name]
        assert isinstance(option, click.Option)
        assert option.opts[0] == f"--{name.replace('_', '-')}"
        assert field.description
        assert option.help is not None
        rest = option.help.removeprefix(field.description)
        assert not rest or rest.startswith(" One of ")  # names that are known only when it runs
        assert option.required is field.is_required()
        if not field.is_required() and not option.is_flag and field.default is not None:
            assert option.default == field.default


def test_a_study_file_has_the_same_keys_descriptions_and_types():
    assert set(PruneTable.model_fields) == set(FIELDS) - OWNED
    for name, field in PruneTable.model_fields.items():
        assert field.description == FIELDS[name].description
        assert field.default is None


def test_a_run_records_every_option():
    options = PruneOptions.of(rate=0.5, data="own.jsonl", stages=3)
    recorded = options.recorded()
    assert set(recorded) == set(FIELDS)
    assert (recorded["data"], recorded["stages"], recorded["seed"]) == ("own.jsonl", 3, 0)
    assert PruneOptions.of(**recorded) == options


def values_of(name):
    """A strategy for values that an option may have."""
    field = FIELDS[name]
    if name in ("method", "importance"):
        return st.sampled_from(PARAMETERS[name].type.choices)
    kinds = [field.annotation]
    if get_origin(field.annotation) in (types.UnionType,) or type(None) in get_args(
        field.annotation
    ):
        kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind = kinds[0]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    return {
        bool: st.booleans(),
        int: st.integers(1, 64),
        float: st.floats(0.01, 0.99),
        str: st.sampled_from(["vt,lt", "tiny-clip", "lp"]),
    }.get(kind, st.sampled_from(["a/b.json", "c"]).map(kind))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_command_line_words_equal_names_and_values(data):
    names = data.draw(st.sets(st.sampled_from(sorted(set(FIELDS) - {"rate"})), max_size=8))
    values = {name: data.draw(values_of(name), label=name) for name in names}
    values["rate"] = 0.5
    words = [word for name, value in values.items() for word in words_of(name, FIELDS[name], value)]
    context = command.make_context("prune", words, parent=click.Context(cli))
    # The arguments of the command: the given parameters of the context.
    with context:
        chosen = {
            name: context.params[name]
            for name in FIELDS
            if context.get_parameter_source(name).name == "COMMANDLINE"
        }
    by_words, by_name = attempt(chosen), attempt(values)
    assert by_words == by_name
    in_file = {name: value for name, value in values.items() if name not in OWNED}
    plain = {
        name: str(value) if name == "latency_table" else value for name, value in in_file.items()
    }
    assert PruneTable(**plain).model_dump(exclude_none=True) == plain


def attempt(values):
    """The options, or the error that refuses them."""
    try:
        return PruneOptions.of(**values)
    except CompExportError as error:
        return str(error)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "option 'rate' is missing"),
        ({"rate": 1.0}, r"--rate 1 is outside \(0, 1\)"),
        ({"rate": 0.5, "stagez": 3}, r"unknown option 'stagez': did you mean 'stages'\?"),
        ({"rate": 0.5, "stages": 0}, "option 'stages' is 0: input should be greater than or equal"),
        ({"rate": 0.5, "method": "none"}, "--method .none. is unknown: choose from comp, wanda"),
        ({"rate": 0.5, "method": "wanda", "cost": "latency"}, "--cost latency with --method wanda"),
        ({"rate": 0.5, "race": 2, "recover": "none"}, "--race 2 with --recover none"),
        ({"rate": 0.5, "stream": True, "method": "upop"}, "--stream with --method upop"),
        ({"rate": 0.5, "stream": True, "device_map": "auto"}, "--stream with --device-map auto"),
        ({"rate": 0.5, "faithful": True, "undo": True}, "--undo is not of the paper's recipe"),
    ],
)
def test_wrong_options_are_refused_by_name(values, message):
    with pytest.raises(CompExportError, match=message):
        PruneOptions.of(**values)


def test_options_are_immutable():
    options = PruneOptions.of(rate=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        options.rate = 0.6
