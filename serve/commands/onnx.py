"""``comp-export onnx``: export a run to ONNX artifacts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comp.commands.options import CommonOptions, common_options, data_options, run_argument
from comp.errors import CompExportError
from comp.utils.console import print_json, print_table, progress, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from comp.runs import RunDirectory
    from export.artifact.manifest import Flavour, Manifest, Precision, Rounding
    from export.calibration import Calibration, Integers
    from export.exporter import Origin
    from export.graph.builder import Target
    from export.proof.interface import Examples

MIB = 2**20
PROGRAM = "comp-export"
EXAMPLES = 64  # to calibrate on
# The short form of verify's first link that checks every export.
CHECKED, CHECKED_TOKENS, CHECK_SECONDS = 4, 8, 15.0
NOT_ANSWERED = "answers in other precisions than float32 are compared by verify"


@click.command(name="onnx")
@run_argument
@click.option(
    "--flavour",
    type=click.Choice(["onnxruntime", "standard"]),
    default="onnxruntime",
    show_default=True,
    help="onnxruntime: its fused operators; standard: ONNX operators only (TensorRT, OpenVINO).",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "bfloat16", "int8", "int4"]),
    default="float32",
    show_default=True,
    help="Precision of weights, computation and caches; bfloat16 for OpenVINO and TensorRT (flavour "
    "standard). int8 and int4 apply to weights, for CPUs.",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "calibrated"]),
    default="nearest",
    show_default=True,
    help="Rounding of int4: to the nearest, or calibrated by NNCF on examples (extra calibrate).",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=EXAMPLES,
    show_default=True,
    help="Number of examples to calibrate on.",
)
@data_options(
    "Your own examples to calibrate on, or to check float16 on: LLaVA-Instruct, VQAv2, Karpathy's JSON, "
    "NLVR2, or JSONL [default: EmojiScenes, train split]."
)
@click.option(
    "--dense/--no-dense",
    default=True,
    show_default=True,
    help="Also export the dense model, the baseline.",
)
@click.option("--model", help="The dense model, if it is no longer where RUN names it.")
@click.option("--force", is_flag=True, help="Replace existing artifacts.")
@click.option("--resume", is_flag=True, help="Keep complete artifacts, and write the missing ones.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare the export with transformers, on pictures and words, before it is moved into place.",
)
@common_options
def command(
    run: Path,
    flavour: "Flavour",
    precision: "Precision",
    rounding: "Rounding",
    examples: int,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    dense: bool,
    model: str | None,
    force: bool,
    resume: bool,
    check: bool,
    options: CommonOptions,
) -> None:
    """Export RUN to ONNX: its slim checkpoint and, as the baseline, the dense model.

    Each artifact is compared with transformers on a few pictures and texts, for at most a minute; an
    artifact that differs is not exported. verify compares more.

    The defaults are written to onnx/ and onnx-dense/ of the run. Another flavour or precision is
    appended to the name: onnx-standard/, onnx-dense-standard/, onnx-float16/, onnx-standard-float16/.
    For float16 the largest activations are measured first: the parts of a LLaVA's decoder that exceed
    float16 stay in float32, other parts that do are reported as a warning.
    """
    from comp.runs import hold, open_run
    from export.exporter import artifact_directory
    from export.graph.builder import Target

    target = Target(flavour, precision)
    directory_of_run = open_run(run)
    hold(directory_of_run, "onnx")
    wanted = {
        which: artifact_directory(directory_of_run.path, which == "dense", target)
        for which in (["compressed", "dense"] if dense else ["compressed"])
    }
    if force and resume:
        raise CompExportError("--force starts again and --resume continues: give one of them")
    for directory in wanted.values():
        if directory.exists() and not (force or resume):
            raise CompExportError(
                f"{directory} exists already: pass --force to replace it, or --resume to keep it and write "
                "what is missing"
            )
    calibration = _calibration(
        directory_of_run, rounding, precision, examples, data, images, follow_links, model
    )
    tried = _tried(directory_of_run, precision, data, images, follow_links)
    kept = _kept(directory_of_run, wanted, target.rounding and rounding) if resume else {}
    missing = {which: directory for which, directory in wanted.items() if which not in kept}
    exported = (
        _export(directory_of_run, missing, target, calibration, tried, model, check, options)
        if missing
        else {}
    )
    manifests = {which: kept.get(which) or exported[which] for which in wanted}
    result: dict[str, Any] = {
        "run": str(directory_of_run.path),
        "flavour": flavour,
        "precision": precision,
        "rounding": target.rounding and rounding,
        "kept": list(kept),
        "files": [
            str(wanted[which] / entry.name)
            for which, manifest in manifests.items()
            for entry in manifest.files
        ],
        "artifacts": {
            which: {
                "directory": str(wanted[which]),
                "bytes": manifest.size_bytes,
                "params": manifest.params,
                "macs": None if manifest.macs is None else manifest.macs.artifact,
                "activations": manifest.activations and manifest.activations.model_dump(),
            }
            for which, manifest in manifests.items()
        },
    }
    if options.json:
        print_json(result)
        return
    rows = [
        (
            which,
            wanted[which].name,
            f"{manifest.size_bytes / MIB:.1f} MiB",
            f"{manifest.params / 1e6:.2f} M",
            "" if manifest.macs is None else f"{manifest.macs.artifact / 1e9:.3f} G",
        )
        for which, manifest in manifests.items()
    ]
    columns = ("artifact", "directory", "size", "parameters", "MACs a prompt")
    print_table("", columns, rows, numbers_from=2)
    say(f"verify it with `comp-export verify {run}`")


def _export(
    run: "RunDirectory",
    wanted: dict[str, Path],
    target: "Target",
    calibration: "Calibration | None",
    tried: "Examples | None",
    model: str | None,
    check: bool,
    options: CommonOptions,
) -> dict[str, "Manifest"]:
    """Write the artifacts; ``tried`` are examples to check float16 on, or ``None``."""
    from comp.checkpoints.dense_model import ELSEWHERE, dense_model_of
    from comp.plan import Workload
    from export.exporter import Origin, export_artifact, graphs_to_write

    plan = run.load_plan()
    if not (run.checkpoint / "config.json").is_file():
        raise CompExportError(
            f"{run.path} has no slim checkpoint: finish it with `comp-export prune --resume`"
        )
    sources: dict[str, tuple[Path, Origin]] = {}
    if "compressed" in wanted:
        sources["compressed"] = run.checkpoint, Origin.of_plan(plan)
    if "dense" in wanted:
        workload: Workload = plan.workload
        directory = dense_model_of(run, model, f"{ELSEWHERE}, or leave it out with --no-dense")
        sources["dense"] = directory, Origin(plan.model, workload=workload)
    manifests = {}
    notes: list[str] = []
    with progress(disable=options.json) as bar:
        for which, (checkpoint, origin) in sources.items():
            for_this, activations = target, None
            if tried is not None:
                from export.activations import Half

                half = Half.of(checkpoint, target, tried)
                for_this, activations = half.target, half.activations
                notes += half.warnings(which)
            if calibration is not None:
                integers = _calibrated(bar, which, run, checkpoint, origin, calibration)
                for_this = replace(target, integers=integers)
            task = bar.add_task(which, total=len(graphs_to_write(checkpoint, target)))
            advance = partial(_advance, bar, task)
            checked = (
                _check(bar, run, wanted[which].name, which == "dense", model)
                if check
                else _unchecked
            )
            manifests[which] = export_artifact(
                checkpoint,
                wanted[which],
                origin,
                for_this,
                written=advance,
                check=checked,
                activations=activations,
            )
    for note in notes:
        say(note)
    return manifests


def _check(
    bar: "Progress", run: "RunDirectory", name: str, dense: bool, model: str | None
) -> "Callable[[Path], None]":
    """Make the check that refuses an artifact that differs from transformers."""
    from comp.data.embedded import embedded_examples
    from export.artifact.load import load_artifact
    from export.proof.first_link.compare import NotCompared
    from serve.first_link.links import FromUsers, refuse_parted

    def started(side: str, total: int) -> "Callable[[], None]":
        task = bar.add_task(f"{name}: {side}", total=total)
        return lambda: bar.advance(task)

    def check(directory: Path) -> None:
        artifact = load_artifact(directory, check_hashes=False)
        examples = embedded_examples(artifact.manifest.task, "train", CHECKED)
        alone = "" if artifact.manifest.precision == "float32" else NOT_ANSWERED
        first = FromUsers(examples, CHECKED, CHECKED_TOKENS, CHECK_SECONDS, name, model, alone)
        links = first.of_original(run, [artifact], started=started)
        if not dense:
            links += first.of_slim(run.checkpoint, [artifact], started=started)
        refuse_parted(links)
        for link in links:
            if isinstance(link, NotCompared):
                say(f"not compared: {link.name}: {link.reason}")

    return check


def _unchecked(directory: Path) -> None:
    """Check nothing: the user passed --no-check."""


def _kept(
    run: "RunDirectory", wanted: dict[str, Path], rounding: "Rounding | None"
) -> dict[str, "Manifest"]:
    """Load the complete artifacts; a directory gets its name only when it is complete.

    Raises:
        CompExportError: one is of another plan, rounding or release, or is damaged.
    """
    from export.artifact.load import load_artifact
    from export.exporter import Origin

    origin = Origin.of_plan(run.load_plan())
    theirs = {"compressed": (origin.method, origin.rate), "dense": (None, 0.0)}
    kept = {}
    for which, directory in wanted.items():
        if not directory.exists():
            continue
        manifest = load_artifact(directory).manifest
        recorded = manifest.method, manifest.rate, manifest.rounding, manifest.versions.get(PROGRAM)
        expected = *theirs[which], rounding, version(PROGRAM)
        if recorded != expected:
            raise CompExportError(
                f"{directory} was exported from another plan, with another rounding or by another release "
                f"({_words(recorded)}, requested: {_words(expected)}): pass --force to replace it"
            )
        kept[which] = manifest
    return kept


def _words(recorded: tuple[Any, ...]) -> str:
    method, rate, rounding, release = recorded
    return (
        f"{method or 'dense'} at {rate:.4f}, rounding {rounding or 'none'}, comp-export {release}"
    )


def _calibration(
    run: "RunDirectory",
    rounding: "Rounding",
    precision: "Precision",
    count: int,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    model: str | None,
) -> "Calibration | None":
    """Choose what to calibrate on; ``None`` without calibration.

    Raises:
        CompExportError: another precision than int4, options without effect, or unreadable data.
    """
    if rounding == "nearest":
        if precision != "float16" and (data is not None or images is not None or follow_links):
            raise CompExportError(
                "--data, --images and --follow-links are for calibrating and for trying float16: pass "
                "--rounding calibrated or --precision float16 too"
            )
        return None
    if precision != "int4":
        raise CompExportError(
            f"--rounding calibrated with --precision {precision}: it is for int4 (255 values leave nothing "
            "to gain); pass --precision int4, or leave it out"
        )
    from export.calibration import Calibration, examples_for

    return Calibration(examples_for(run, count, data, images, follow_links), count, model)


def _tried(
    run: "RunDirectory",
    precision: "Precision",
    data: Path | None,
    images: Path | None,
    follow_links: bool,
) -> "Examples | None":
    """Load the examples to measure activations on before an export in float16.

    Raises:
        CompExportError: the data cannot be read.
    """
    if precision != "float16":
        return None
    if run.load_plan().task is None:
        say(
            f"activations were not measured: the plan of {run.path} names no task; check with "
            "`comp-export eval` whether float16 holds them"
        )
        return None
    from export.activations import FEW
    from export.calibration import examples_for

    return examples_for(run, FEW, data, images, follow_links)


def _calibrated(
    bar: "Progress",
    which: str,
    run: "RunDirectory",
    checkpoint: Path,
    origin: "Origin",
    calibration: "Calibration",
) -> "Integers":
    from export.calibration import calibrated

    def started(name: str, total: int) -> "Callable[[], None]":
        task = bar.add_task(f"{which}: {name}", total=total)
        return lambda: bar.advance(task)

    return calibrated(run, checkpoint, origin, calibration, started)


def _advance(bar: "Progress", task: "TaskID", graph: str) -> None:
    bar.update(task, advance=1, description=graph)
