"""A command whose help shows its options in groups, then examples."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from comp.utils.option_fields import OTHER_OPTIONS, OptionGroup
from comp.utils.similar import unknown_name


class GroupedOption(click.Option):
    """An option that belongs to a group of the help."""

    def __init__(self, *args: Any, group: OptionGroup = OTHER_OPTIONS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command that shows its options by group, in the order of ``groups``.

    Args:
        groups: the groups; options without one come last.
        examples: pairs of a command line, after the program's name, and its purpose.
    """

    def __init__(
        self,
        *args: Any,
        groups: Sequence[OptionGroup] = (),
        examples: Sequence[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups = (*groups, OTHER_OPTIONS)
        self.examples = tuple(examples)

    def grouped(self, ctx: click.Context) -> Iterator[tuple[OptionGroup, list[click.Option]]]:
        """Yield each group that is not empty, with its options."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        for group in self.groups:
            members = [each for each in options if _group_of(each) == group]
            if members:
                yield group, members

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, options in self.grouped(ctx):
            with formatter.section(group.title):
                formatter.write_dl(
                    list(filter(None, (each.get_help_record(ctx) for each in options)))
                )
        if self.examples:
            with formatter.section("Examples"):
                for words, purpose in self.examples:
                    formatter.write_text(f"{purpose}:")
                    indent = " " * (formatter.current_indent + 2)
                    formatter.write(f"{indent}{program_of(ctx)} {words}\n")


def program_of(ctx: click.Context) -> str:
    """Return the name of the program that a command belongs to."""
    return ctx.find_root().info_name or ""


def _group_of(option: click.Option) -> OptionGroup:
    return option.group if isinstance(option, GroupedOption) else OTHER_OPTIONS


class NearChoice(click.Choice[str]):
    """A choice of names whose error suggests the nearest one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        names = [str(each) for each in self.choices]
        return unknown_name(str(value), names)
