"""The command line: a table of commands, each imported when it is used.

Nothing here imports torch. The module of a command is imported only to run or describe that *one* command,
so that ``comp-export --help`` is fast.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

import click

from comp.errors import CompExportError
from comp.utils.install import install_hint
from comp.utils.similar import suggestion

PROGRAM = "comp-export"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

# Packages of optional extras; all others belong to the base installation.
EXTRA_OF_PACKAGE = {
    "cuda": "tensorrt-rtx",
    "fastapi": "server",
    "gradio": "demo",
    "nncf": "calibrate",
    "onnxruntime": "serve",
    "openvino": "openvino",
    "peft": "train",
    "prometheus_client": "server",
    "ray": "ray",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "uvicorn": "server",
    "yaml": "ray",
}


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        target: its location, ``module:attribute``.
        help: its help line.
        resume_hint: how to continue after an interrupt.
    """

    target: str
    help: str
    resume_hint: str = ""


VERBS: dict[str, Verb] = {
    "models": Verb("comp.commands.models:command", "Show models, families and methods."),
    "flops": Verb("comp.commands.flops:command", "Count multiply-accumulates and parameters."),
    "profile": Verb(
        "export.commands.profile:command",
        "Measure a model's blocks: the table of `prune --cost latency`.",
        resume_hint="run the same command to continue",
    ),
    "plan": Verb(
        "export.commands.plan:command", "Find the rate for a target time, before pruning."
    ),
    "prune": Verb(
        "comp.commands.prune:command",
        "Prune a model: CoMP from start to end.",
        resume_hint="run the same command with --resume to continue",
    ),
    "cut": Verb(
        "export.commands.cut:command", "Carry a plan out on a checkpoint, without training."
    ),
    "onnx": Verb(
        "serve.commands.onnx:command",
        "Export a run to ONNX, slim and dense.",
        resume_hint="run the same command with --resume to continue",
    ),
    "tensorrt": Verb(
        "export.commands.tensorrt:command", "Build TensorRT engines, with or without a GPU."
    ),
    "verify": Verb(
        "serve.commands.verify:command", "Prove that every variant gives the same answers."
    ),
    "eval": Verb("serve.commands.eval:command", "Measure accuracy, dense and compressed."),
    "bench": Verb("serve.commands.bench:command", "Measure speed, memory and size, in turn."),
    "study": Verb(
        "serve.commands.study:command",
        "Compare methods at equal training: a grid of runs.",
        resume_hint="run the same command to continue",
    ),
    "run": Verb("serve.commands.run:command", "Answer one question about one image, streamed."),
    "serve": Verb("serve.commands.serve:command", "Serve models to any client of OpenAI's API."),
    "triton": Verb("serve.commands.triton:command", "Write a model repository for NVIDIA Triton."),
    "inspect": Verb(
        "comp.commands.inspect:command", "Show a plan and artifacts as tables and figures."
    ),
    "data": Verb("comp.commands.data:command", "Look at the embedded dataset."),
    "demo": Verb("demo.commands:demo", "Open the page: original and compressed side by side."),
    "quickstart": Verb("demo.commands:quickstart", "Do everything before the page in one command."),
}


class LazyGroup(click.Group):
    """A group that knows the names and help of its commands, and imports a command on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module, _, attribute = verb.target.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{verb.target} is a {type(command).__name__}, not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in VERBS and not word.startswith("-"):
            ctx.fail(f"No such command {word!r}. {suggestion(word, VERBS).capitalize()}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(name=PROGRAM, cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM)
def cli() -> None:
    """Compress a vision-language model with CoMP, export it, prove it, run it.

    Every verb that takes a RUN works on runs/latest when none is named.

    FLOPs are counted as in the paper: one multiply-accumulate (MAC), a multiplication with its addition,
    is one. Tables give GMACs, 1e9 of them.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status.

    An expected failure prints one line on stderr and gives status 1; an unexpected one also points to
    ``--debug``, which shows the traceback. An interrupt gives status 130.
    """
    # Before torch loads: its threads otherwise spin while they wait, and take the cores from those that they
    # wait for as soon as another process uses one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        status = cli.main(words, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        verb = VERBS.get(next((word for word in words if not word.startswith("-")), ""))
        _say(f"interrupted; {verb.resume_hint}" if verb and verb.resume_hint else "interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except CompExportError as error:
        if debug:
            raise
        _say(f"Error: {error}")
        sys.exit(EXIT_FAILED)
    except ModuleNotFoundError as error:
        if debug:
            raise
        package = (error.name or "").partition(".")[0]
        extra = EXTRA_OF_PACKAGE.get(package)
        hint = install_hint(extra) if extra else install_hint()
        _say(f"Error: package {package!r} is not installed: {hint}")
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        _say(f"Error: {type(error).__name__}: {error} (unexpected; add --debug for the traceback)")
        sys.exit(EXIT_FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def _say(message: str) -> None:
    """Print a message as one line on stderr."""
    click.echo(" ".join(message.split()), err=True)


if __name__ == "__main__":
    main()
