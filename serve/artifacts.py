"""The two artifacts of a run, and the errors for those that are not there."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comp.errors import CompExportError
from comp.runs import RunDirectory, open_run
from export.manifest import MANIFEST_NAME, Flavour, Manifest, Precision, read_manifest

if TYPE_CHECKING:
    from serve.engine import Engine

Which = Literal["dense", "compressed"]
BOTH: tuple[Which, Which] = ("dense", "compressed")


@dataclass(frozen=True)
class Form:
    """Which export of a run: a run may hold several side by side."""

    flavour: Flavour = "onnxruntime"
    precision: Precision = "float32"

    def directory(self, run: Path, which: Which) -> Path:
        """``onnx`` and ``onnx-dense``, with whatever is not the default added to the name."""
        return run / f"{'onnx-dense' if which == 'dense' else 'onnx'}{self.suffix}"

    @property
    def suffix(self) -> str:
        """What is added to names of directories and reports; nothing for the default form."""
        flavour = f"-{self.flavour}" if self.flavour != "onnxruntime" else ""
        return flavour + (f"-{self.precision}" if self.precision != "float32" else "")

    @property
    def export_options(self) -> str:
        """What ``comp-export onnx`` must be told to make it."""
        words = [f" --flavour {self.flavour}"] if self.flavour != "onnxruntime" else []
        words += [f" --precision {self.precision}"] if self.precision != "float32" else []
        return "".join(words)


DEFAULT_FORM = Form()


def artifact_of(run: RunDirectory, which: Which, form: Form = DEFAULT_FORM) -> Path:
    """The directory of one artifact.

    Raises:
        CompExportError: when the run has not been exported in that form.
    """
    directory = form.directory(run.path, which)
    if not (directory / MANIFEST_NAME).is_file():
        raise CompExportError(
            f"{run.path} has no {which} artifact ({directory.name}/): "
            f"run `comp-export onnx {run.path}{form.export_options}`"
        )
    return directory


def artifacts_of(path: Path, form: Form = DEFAULT_FORM) -> tuple[RunDirectory, dict[Which, Path]]:
    """A run with the directories of both artifacts."""
    run = open_run(path)
    return run, {which: artifact_of(run, which, form) for which in BOTH}


def engines_of(
    directories: dict[Which, Path],
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None = None,
) -> "dict[Which, Engine]":
    """Both engines in one process."""
    from serve.engine import Engine

    return {
        which: Engine.load(directory, device, threads) for which, directory in directories.items()
    }


def is_verified(directory: Path) -> bool:
    """Whether ``comp-export verify`` held for exactly these files."""
    manifest = read_manifest(directory)
    return manifest.verified is not None and manifest.verified.ok


def flops_ratio(dense: Manifest, compressed: Manifest) -> float | None:
    """Multiply-accumulates of the compressed model over those of the dense one (1 - rate).

    ``None`` when a manifest has no count.
    """
    if dense.macs is None or compressed.macs is None:
        return None
    return compressed.macs.artifact / dense.macs.artifact
