"""Generate reference pages from the code: ``python -m comp.commands.cli_reference docs``.

``cli.md`` comes from the commands, ``plan.schema.json`` from the plan's model.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from comp.cli import PROGRAM, VERBS, cli
from comp.commands.options import CommonOptions, common_options
from comp.plan import PruningPlan
from comp.utils.files import write_text

COMMON = frozenset({"--device", "--seed", "--json", "--debug", "--help"})

HEAD = f"""# Command line

Generated from the commands by `make docs`; do not edit. `{PROGRAM} VERB --help` prints the same.

Every expected failure is one line on stderr with a remedy. The exit status
is 1 for a failure, 2 for a wrong option, 130 for an interrupt. Results go to stdout, progress to
stderr. `RUN` is a run directory and defaults to `runs/latest`.
"""


def pages() -> dict[str, str]:
    """Return the generated files of ``docs/``, by name."""
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

    rows = _option_rows(any_verb, context, without=frozenset())
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
    rows = _option_rows(command, context, COMMON)
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows, ""])


def _option_rows(
    command: click.Command, context: click.Context, without: frozenset[str]
) -> list[str]:
    options = [
        param
        for param in command.get_params(context)
        if isinstance(param, click.Option) and without.isdisjoint(param.opts)
    ]
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
