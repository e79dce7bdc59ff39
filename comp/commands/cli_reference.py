"""Generate reference pages from the code: ``python -m comp.commands.cli_reference docs/reference``.

``cli.md`` comes from the commands, ``plan.schema.json`` from the plan's model.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from comp.cli import PROGRAM, VERBS, cli
from comp.commands.options import CommonOptions, common_options
from comp.commands.sections import GroupedCommand
from comp.plan import PruningPlan
from comp.utils.files import write_text

COMMON = frozenset({"--device", "--seed", "--json", "--debug", "--help"})

HEAD = f"""# Command line

Generated from the commands by `make docs`; do not edit. `{PROGRAM} VERB --help` prints the same.

Every expected failure is one line on stderr with a remedy. The exit status
is 1 for a failure, 2 for a wrong option, 130 for an interrupt. Results go to stdout, progress to
stderr. `RUN` is a run directory and defaults to `runs/latest`.

FLOPs are counted as in the paper: one multiply-accumulate (MAC), a multiplication with its addition, is one.
Tables give GMACs, 10⁹ of them. Sizes are in MiB, 2²⁰ bytes.
"""


def pages() -> dict[str, str]:
    """Return the generated files of ``docs/reference/``, by name."""
    schema = json.dumps(PruningPlan.model_json_schema(), indent=1)
    return {"cli.md": cli_page(), "plan.schema.json": schema + "\n"}


def cli_page() -> str:
    """Return all commands and options, in Markdown."""
    root = cli.make_context(PROGRAM, [], resilient_parsing=True)
    sections = [HEAD, _verb_table(), _common_table(root)]
    for name in VERBS:
        command = cli.get_command(root, name)
        if command is None:  # every name of the table has a command
            raise LookupError(name)
        sections.extend(_sections(command, click.Context(command, info_name=name, parent=root)))
    return "\n".join(sections)


def _verb_table() -> str:
    rows = [f"| [`{name}`](#{PROGRAM}-{name}) | {verb.help} |" for name, verb in VERBS.items()]
    return "\n".join(["| verb | does |", "|---|---|", *rows, ""])


def _common_table(context: click.Context) -> str:
    @click.command()
    @common_options
    def any_verb(options: CommonOptions) -> None:
        """Take the shared options and nothing else."""

    (_, options), *_ = _groups(any_verb, context)
    rows = _rows(options, context)
    return "\n".join(["Every verb takes:", "", "| option | meaning |", "|---|---|", *rows, ""])


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## {context.command_path}\n\n    {usage}\n\n{_paragraphs(command.help or '')}"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from _sections(below, click.Context(below, info_name=name, parent=context))
        return
    for title, options in _groups(command, context):
        rows = _rows([each for each in options if COMMON.isdisjoint(each.opts)], context)
        if rows:
            heading = [f"### {title}", ""] if title else []
            yield "\n".join([*heading, "| option | meaning |", "|---|---|", *rows, ""])
    if isinstance(command, GroupedCommand) and command.examples:
        lines = [f"    {PROGRAM} {words}  # {purpose}" for words, purpose in command.examples]
        yield "\n".join(["### Examples", "", *lines, ""])


def _groups(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, list[click.Option]]]:
    """Yield each group of a command's options with its title; a single one without if there are none."""
    if isinstance(command, GroupedCommand):
        yield from ((group.title, options) for group, options in command.grouped(context))
    else:
        params = command.get_params(context)
        yield "", [param for param in params if isinstance(param, click.Option)]


def _rows(options: list[click.Option], context: click.Context) -> list[str]:
    records = [option.get_help_record(context) for option in options]
    return [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in filter(None, records)]


def _paragraphs(text: str) -> str:
    lines = [line.strip() for line in text.replace("\b", "").splitlines()]
    return "\n".join(lines).strip() + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the pages to the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m comp.commands.cli_reference FOLDER")
    for name, text in pages().items():
        write_text(Path(sys.argv[1]) / name, text)


if __name__ == "__main__":
    main()
