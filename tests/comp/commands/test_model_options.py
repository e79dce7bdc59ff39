"""Options of a command that are built from the fields of a pydantic model."""

from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from comp.commands.model_options import model_options, option_of, words_of
from comp.utils.option_fields import OneOf


class Options(BaseModel):
    name: str = Field(description="Its name.")
    kind: Literal["a", "b"] = Field("a", description="Its kind.")
    way: Annotated[str, OneOf(lambda: ["x", "y"])] = Field("x", description="Its way.")
    share: float = Field(0.5, gt=0, le=1, description="A share.")
    most: int | None = Field(None, ge=1, lt=9, description="The most.")
    wide_open: bool | None = Field(None, description="Open or not.")
    fast: bool = Field(default=False, description="Fast.")
    hidden: int = 3


@click.command()
@model_options(Options, without={"hidden"}, before={"share": [click.option("--out")]})
def command(given, out):
    """Print the given options."""
    click.echo(repr((given, out)))


def output_of(*words):
    result = CliRunner().invoke(command, [*words])
    assert result.exit_code == 0, result.output
    return result.output


def test_only_given_options_are_passed_on():
    assert output_of("--name", "n") == "({'name': 'n'}, None)\n"
    words = ("--name", "n", "--kind", "a", "--no-wide-open", "--fast", "--out", "o")
    given = {"name": "n", "kind": "a", "wide_open": False, "fast": True}
    assert output_of(*words) == f"({given!r}, 'o')\n"


def test_help_has_types_ranges_defaults_descriptions_and_the_order_of_fields():
    text = " ".join(output_of("--help").split())
    names = ["--name", "--kind", "--way", "--out", "--share", "--most", "--wide-open", "--fast"]
    places = [text.index(name) for name in names]
    assert places == sorted(places)
    assert "--kind [a|b] Its kind. [default: a]" in text
    assert "--way [x|y] Its way. [default: x]" in text
    assert "A share. [default: 0.5; 0<x<=1]" in text
    assert "The most. [1<=x<9]" in text
    assert "--wide-open / --no-wide-open" in text
    assert "Its name. [required]" in text


@pytest.mark.parametrize(
    "words",
    [("--share", "0"), ("--share", "1.1"), ("--most", "9"), ("--way", "z"), ("--kind", "c")],
)
def test_values_out_of_range_are_usage_errors(words):
    assert CliRunner().invoke(command, ["--name", "n", *words]).exit_code == 2


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("share", 0.25, ["--share", "0.25"]),
        ("fast", True, ["--fast"]),
        ("fast", False, []),
        ("wide_open", True, ["--wide-open"]),
        ("wide_open", False, ["--no-wide-open"]),
    ],
)
def test_command_line_words_become_values(name, value, words):
    assert words_of(name, Options.model_fields[name], value) == words


def test_a_field_type_without_an_option_is_refused():
    class Other(BaseModel):
        pairs: dict[str, int] = Field({"a": 1}, description="Pairs.")

    with pytest.raises(TypeError, match="dict"):
        option_of("pairs", Other.model_fields["pairs"])
