"""Export a run: its slim checkpoint and, as the baseline, the dense model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from comp.checkpoints.dense_model import ELSEWHERE, dense_model_of
from comp.errors import CompExportError
from comp.plan import Workload
from comp.runs import RunDirectory
from export.artifact.load import load_artifact
from export.artifact.manifest import Flavour, Manifest, Precision, Rounding
from export.exporter import Origin, artifact_directory, export_artifact, graphs_to_write
from export.graph.builder import Target
from export.proof.interface import Examples

if TYPE_CHECKING:
    from export.calibration import Calibration

Which = Literal["compressed", "dense"]
Started = Callable[[str, int], Callable[[], None]]
"""Called with a step's name and length; returns the callback for its progress."""

PROGRAM = "comp-export"
EXAMPLES = 64  # to calibrate on


class Check(Protocol):
    """Makes the check of one artifact before it is moved into place; it raises to refuse the artifact."""

    def __call__(
        self, run: RunDirectory, name: str, dense: bool, model: str | None, started: Started
    ) -> Callable[[Path], None]: ...


@dataclass(frozen=True)
class ExportRequest:
    """Request to export a run.

    Attributes:
        flavour, precision, rounding: those of the graphs.
        examples: number of examples to calibrate on.
        data, images, follow_links: your own examples to calibrate on, or to measure activations on: a file,
            or a sequence of examples.
        dense: also export the dense model.
        model: where the dense model is now, if it was moved after the run.
        force: replace existing artifacts.
        resume: keep complete artifacts, and write the missing ones.
    """

    flavour: Flavour = "onnxruntime"
    precision: Precision = "float32"
    rounding: Rounding = "nearest"
    examples: int = EXAMPLES
    data: Path | Examples | None = None
    images: Path | None = None
    follow_links: bool = False
    dense: bool = True
    model: str | None = None
    force: bool = False
    resume: bool = False

    @property
    def target(self) -> Target:
        return Target(self.flavour, self.precision)

    def directories(self, run: RunDirectory) -> dict[Which, Path]:
        """Directories to write, the compressed artifact first."""
        both: list[Which] = ["compressed", "dense"] if self.dense else ["compressed"]
        return {
            which: artifact_directory(run.path, which == "dense", self.target) for which in both
        }


@dataclass(frozen=True)
class Exported:
    """The artifacts of a run after an export.

    Attributes:
        run: the exported run.
        directories, manifests: those of each artifact.
        rounding: rounding of int4; ``None`` in other precisions.
        kept: artifacts that were complete before (``resume``).
        warnings: warnings for the user.
    """

    run: RunDirectory
    rounding: Rounding | None
    directories: dict[Which, Path]
    manifests: dict[Which, Manifest]
    kept: tuple[Which, ...]
    warnings: tuple[str, ...]


def export_run(
    run: RunDirectory,
    request: ExportRequest,
    check: Check | None,
    started: Started = lambda name, total: lambda: None,
) -> Exported:
    """Export a run; the caller holds its lock.

    Args:
        run: a finished run.
        request: the request.
        check: compares each artifact with transformers; ``None``: no check.
        started: see ``Started``.

    Raises:
        CompExportError: an artifact exists, options without effect, unreadable data, no slim checkpoint, a
            dense model that is gone, or an artifact that ``check`` refuses.
    """
    directories = request.directories(run)
    if request.force and request.resume:
        raise CompExportError("--force starts again and --resume continues: give one of them")
    for directory in directories.values():
        if directory.exists() and not (request.force or request.resume):
            raise CompExportError(
                f"{directory} exists already: pass --force to replace it, or --resume to keep it and write "
                "what is missing"
            )
    calibration, warnings = _calibration(run, request), list[str]()
    tried = _tried(run, request, warnings)
    kept = _kept(run, request) if request.resume else {}
    manifests = dict(kept)
    for which, (checkpoint, origin) in _sources(run, request, set(directories) - set(kept)).items():
        target, activations = request.target, None
        if tried is not None:
            from export.activations import Half

            half = Half.of(checkpoint, target, tried)
            target, activations = half.target, half.activations
            warnings += half.warnings(which)
        if calibration is not None:
            from export.calibration import calibrated

            def of_this(name: str, total: int, which: str = which) -> Callable[[], None]:
                return started(f"{which}: {name}", total)

            target = replace(
                target, integers=calibrated(run, checkpoint, origin, calibration, of_this)
            )
        written = started(which, len(graphs_to_write(checkpoint, target)))
        directory = directories[which]
        manifests[which] = export_artifact(
            checkpoint,
            directory,
            origin,
            target,
            written=_ignoring_name(written),
            check=_unchecked
            if check is None
            else check(run, directory.name, which == "dense", request.model, started),
            activations=activations,
        )
    return Exported(
        run,
        request.target.rounding and request.rounding,
        directories,
        {which: manifests[which] for which in directories},
        tuple(kept),
        tuple(warnings),
    )


def _sources(
    run: RunDirectory, request: ExportRequest, missing: set[Which]
) -> dict[Which, tuple[Path, Origin]]:
    """Return checkpoint and origin of each missing artifact."""
    if not missing:
        return {}
    plan = run.load_plan()
    if not (run.checkpoint / "config.json").is_file():
        raise CompExportError(
            f"{run.path} has no slim checkpoint: finish it with `comp-export prune --resume`"
        )
    sources: dict[Which, tuple[Path, Origin]] = {}
    if "compressed" in missing:
        sources["compressed"] = run.checkpoint, Origin.of_plan(plan)
    if "dense" in missing:
        workload: Workload = plan.workload
        directory = dense_model_of(
            run, request.model, f"{ELSEWHERE}, or leave it out with --no-dense"
        )
        sources["dense"] = directory, Origin(plan.model, workload=workload)
    return sources


def _ignoring_name(done: Callable[[], None]) -> Callable[[str], None]:
    return lambda graph: done()


def _unchecked(directory: Path) -> None:
    """Check nothing: the user passed --no-check."""


def _kept(run: RunDirectory, request: ExportRequest) -> dict[Which, Manifest]:
    """Load the complete artifacts; a directory gets its name only when it is complete.

    Raises:
        CompExportError: one is of another plan, rounding or release, or is damaged.
    """
    origin, rounding = Origin.of_plan(run.load_plan()), request.target.rounding and request.rounding
    theirs = {"compressed": (origin.method, origin.rate), "dense": (None, 0.0)}
    kept: dict[Which, Manifest] = {}
    for which, directory in request.directories(run).items():
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


def _calibration(run: RunDirectory, request: ExportRequest) -> "Calibration | None":
    """Choose what to calibrate on; ``None`` without calibration.

    Raises:
        CompExportError: another precision than int4, options without effect, or unreadable data.
    """
    given = request.data is not None or request.images is not None or request.follow_links
    if request.rounding == "nearest":
        if request.precision != "float16" and given:
            raise CompExportError(
                "--data, --images and --follow-links are for calibrating and for trying float16: pass "
                "--rounding calibrated or --precision float16 too"
            )
        return None
    if request.precision != "int4":
        raise CompExportError(
            f"--rounding calibrated with --precision {request.precision}: it is for int4 (255 values leave "
            "nothing to gain); pass --precision int4, or leave it out"
        )
    from export.calibration import Calibration

    examples = _examples(run, request, request.examples)
    return Calibration(examples, request.examples, request.model)


def _tried(run: RunDirectory, request: ExportRequest, warnings: list[str]) -> Examples | None:
    """Load the examples to measure activations on before an export in float16.

    Raises:
        CompExportError: the data cannot be read.
    """
    if request.precision != "float16":
        return None
    if run.load_plan().task is None:
        warnings.append(
            f"activations were not measured: the plan of {run.path} names no task; check with "
            "`comp-export eval` whether float16 holds them"
        )
        return None
    from export.activations import FEW

    return _examples(run, request, FEW)


def _examples(run: RunDirectory, request: ExportRequest, count: int) -> Examples:
    from export.calibration import examples_for

    return examples_for(run, count, request.data, request.images, request.follow_links)
