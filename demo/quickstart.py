"""Run everything before the page, each step only if needed.

Of a model that has an example run in the package: copy it, and export and verify it. Of others, or for the
whole job: prune → onnx → verify → eval → bench.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from time import perf_counter

import click

from comp.errors import CompExportError
from comp.pipeline.example_run import copy_example, is_copied
from comp.runs import RunDirectory, open_run
from export.artifact.load import load_artifact, read_manifest
from export.artifact.manifest import MANIFEST_NAME

EXAMPLE_QUESTIONS = (
    "50"  # that `verify` asks of an example run: it was verified on more when it was made
)

# Measured on two quiet cores with the embedded model: docs/tutorials/first-run.md.
EXAMPLE_TAKES, WHOLE_TAKES = "about two minutes", "about a quarter of an hour"


@dataclass(frozen=True)
class Step:
    """One command, and the check that it is done.

    Attributes:
        call: what is called instead of a command.
    """

    verb: str
    arguments: tuple[str, ...]
    is_done: Callable[[], bool]
    call: Callable[[], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step."""

    verb: str
    skipped: bool
    seconds: float


def steps(
    run: RunDirectory,
    model: str,
    rate: float,
    limit: int,
    shared: Sequence[str],
    force: bool,
    example: RunDirectory | None = None,
) -> tuple[Step, ...]:
    """The steps to a run that can be shown.

    Args:
        run: the run directory to make or complete.
        model: embedded model, directory or hub id.
        rate: share of the FLOPs to remove.
        limit: number of examples for ``eval``.
        shared: options for every command, such as ``--seed 0``.
        force: start the run again.
        example: the example run to copy; it has reports already. None: do the whole job.
    """
    place = str(run.path)
    export = Step("onnx", (place, "--force", *shared), lambda: _is_exported(run))
    if example is not None:
        replaces = force and run.record.exists()
        return (
            Step(
                "copy",
                (example.path.name, place),
                lambda: not force and _is_pruned(run, model, rate),
                lambda: copy_example(example, run, replaces),
            ),
            export,
            Step(
                "verify",
                (place, "--questions", EXAMPLE_QUESTIONS, *shared),
                lambda: _is_verified(run),
            ),
        )
    prune = ["--model", model, "--rate", f"{rate:g}", "--out", place]
    if (force and run.path.exists()) or is_copy(run):
        prune.append("--force")
    elif run.is_interrupted:
        prune.append("--resume")
    return (
        Step(
            "prune",
            (*prune, *shared),
            lambda: not force and not is_copy(run) and _is_pruned(run, model, rate),
        ),
        export,
        Step("verify", (place, *shared), lambda: _is_verified(run)),
        Step(
            "eval",
            (place, "--limit", str(limit), *shared),
            lambda: _has_report(run, "eval"),
        ),
        Step("bench", (place, *shared), lambda: _has_report(run, "bench")),
    )


def is_copy(run: RunDirectory) -> bool:
    """Whether a run is a finished copy of an example run."""
    return run.record.is_file() and not run.is_interrupted and is_copied(run.read_record())


def opening(planned: Sequence[Step], run: RunDirectory, example: RunDirectory | None) -> str:
    """Return the line that says what quickstart will do, and about how long it takes."""
    verbs = [step.verb for step in planned]
    does = f"quickstart: {', '.join(verbs[:-1])} and {verbs[-1]} into {run.path}"
    if example is None:
        return (
            f"{does}: for tiny-llava {WHOLE_TAKES} on two quiet cores; each says how long is left, and done "
            "ones are skipped"
        )
    record = example.read_record()
    return (
        f"{does}: {EXAMPLE_TAKES} on two quiet cores; the example run was made by `prune` with "
        f"{record['steps']['recovery']} steps of recovery (its run.json has all options)"
    )


def perform(step: Step, group: click.Group, quiet: bool, say: Callable[[str], None]) -> Outcome:
    """Run a step unless it is done, as the command line would.

    Args:
        step: what to run.
        group: the commands.
        quiet: send the command's output to stderr.
        say: called with a message about the step.

    Raises:
        CompExportError: as the command raises, or if its exit status is not 0.
    """
    if step.is_done():
        say(f"{step.verb}: done before, skipped")
        return Outcome(step.verb, skipped=True, seconds=0.0)
    start = perf_counter()
    if step.call is not None:
        say(f"{step.verb}: {' to '.join(step.arguments)}")
        step.call()
        return Outcome(step.verb, skipped=False, seconds=perf_counter() - start)
    say(f"{step.verb}: {group.name} {step.verb} {' '.join(step.arguments)}")
    with click.Context(group, info_name=group.name) as context:
        command = group.get_command(context, step.verb)
        if command is None:
            raise CompExportError(f"no verb {step.verb!r}: install comp-export again")
        status = _run(command, step, context, quiet)
    if status:
        raise CompExportError(
            f"`{group.name} {step.verb} {' '.join(step.arguments)}` ended with status {status}: "
            "see what it printed, then run quickstart again"
        )
    return Outcome(step.verb, skipped=False, seconds=perf_counter() - start)


def _run(command: click.Command, step: Step, parent: click.Context, quiet: bool) -> int:
    def call() -> object:
        return command.main(
            list(step.arguments), prog_name=step.verb, standalone_mode=False, parent=parent
        )

    if not quiet:
        status = call()
    else:
        with redirect_stdout(sys.stderr):
            status = call()
    return status if isinstance(status, int) else 0


def _is_pruned(run: RunDirectory, model: str, rate: float) -> bool:
    """Whether the run is finished, of this model and at this rate.

    Raises:
        CompExportError: it is a run of another model or rate.
    """
    if not run.record.is_file() or run.is_interrupted:
        return False
    record = open_run(run.path).read_record()  # refuses another version
    recorded = (record.get("model"), record.get("rate_asked"))
    if recorded != (model, rate):
        raise CompExportError(
            f"{run.path} is a run of {recorded[0]} at rate {recorded[1]}, not of {model} at rate {rate:g}: "
            "choose another place with --out, or replace it with --force"
        )
    return run.plan_file.is_file() and (run.checkpoint / "config.json").is_file()


def _is_exported(run: RunDirectory) -> bool:
    """Whether both artifacts are complete and not older than the plan."""
    for directory in (run.onnx, run.onnx_dense):
        manifest = directory / MANIFEST_NAME
        if not manifest.is_file() or manifest.stat().st_mtime < run.plan_file.stat().st_mtime:
            return False
        try:
            load_artifact(directory)
        except CompExportError:
            return False  # damaged: made again
    return True


def _is_verified(run: RunDirectory) -> bool:
    manifests = [read_manifest(directory) for directory in (run.onnx, run.onnx_dense)]
    return all(m.verified is not None and m.verified.ok for m in manifests)


def _has_report(run: RunDirectory, name: str) -> bool:
    """Whether the report is about these artifacts: newer than them and their verification."""
    report = run.reports / f"{name}.json"
    if not report.is_file():
        return False
    newest = max((d / MANIFEST_NAME).stat().st_mtime for d in (run.onnx, run.onnx_dense))
    return report.stat().st_mtime >= newest
