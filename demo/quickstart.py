"""Run everything before the page: prune → onnx → verify → eval → bench, each only if needed."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from time import perf_counter

import click

from comp.errors import CompExportError
from comp.runs import RunDirectory, open_run
from export.artifact.load import load_artifact, read_manifest
from export.artifact.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Step:
    """One command, and the check that it is done."""

    verb: str
    arguments: tuple[str, ...]
    is_done: Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step."""

    verb: str
    skipped: bool
    seconds: float


def steps(
    run: RunDirectory, model: str, rate: float, limit: int, shared: Sequence[str], force: bool
) -> tuple[Step, ...]:
    """The steps to a run that can be shown.

    Args:
        run: the run directory to make or complete.
        model: embedded model, directory or hub id.
        rate: share of the FLOPs to remove.
        limit: number of examples for ``eval``.
        shared: options for every command, such as ``--seed 0``.
        force: start the run again.
    """
    place = str(run.path)
    prune = ["--model", model, "--rate", f"{rate:g}", "--out", place]
    if force and run.path.exists():
        prune.append("--force")
    elif run.is_interrupted:
        prune.append("--resume")
    return (
        Step("prune", (*prune, *shared), lambda: not force and _is_pruned(run, model, rate)),
        Step("onnx", (place, "--force", *shared), lambda: _is_exported(run)),
        Step("verify", (place, *shared), lambda: _is_verified(run)),
        Step(
            "eval",
            (place, "--limit", str(limit), *shared),
            lambda: _has_report(run, "eval"),
        ),
        Step("bench", (place, *shared), lambda: _has_report(run, "bench")),
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
    say(f"{step.verb}: {group.name} {step.verb} {' '.join(step.arguments)}")
    start = perf_counter()
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
