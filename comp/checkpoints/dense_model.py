"""Record the dense model of a run in ``run.json``, and find it again."""

from pathlib import Path
from typing import Any

from comp.checkpoints.locate import EMBEDDED, resolve_model
from comp.checkpoints.weights_digest import weights_digest
from comp.errors import CompExportError
from comp.runs import RunDirectory

SNAPSHOTS = (
    "snapshots"  # folder of a repository in the hub's cache, with a folder for each revision
)
ELSEWHERE = "say where it is now with --model"


class DenseModelGoneError(CompExportError):
    """The dense model is not where the run says."""


class OtherWeightsError(CompExportError):
    """The model at that place has other weights than the run's dense model."""


def described(name: str, directory: Path) -> dict[str, Any]:
    """Return the fields of ``run.json`` about the dense model.

    Args:
        name: value of ``--model``: an embedded model, a directory, or a hub id.
        directory: the directory of its checkpoint.

    Returns:
        ``model``, ``model_path`` (absolute; only for a directory), ``model_revision`` (only for the hub) and
        ``model_weights`` (``comp.checkpoints.weights_digest``).

    Raises:
        CompExportError: its weights cannot be read.
    """
    local = name not in EMBEDDED and Path(name).is_dir()
    cached = not local and directory.parent.name == SNAPSHOTS
    return {
        "model": name,
        "model_path": str(directory.absolute()) if local else None,
        "model_revision": directory.name if cached else None,
        "model_weights": weights_digest(directory),
    }


def dense_model_of(run: RunDirectory, model: str | None = None, remedy: str = ELSEWHERE) -> Path:
    """Return the directory of a run's dense model, after comparing its weights with the recorded digest.

    Runs of earlier releases have no digest; their weights are not compared.

    Args:
        run: its ``run.json`` names the dense model.
        model: where the model is now, if it was moved: any value that ``--model`` takes.
        remedy: advice for the user if the model is missing or has other weights.

    Raises:
        DenseModelGoneError: the model is neither at the recorded place nor on the hub.
        OtherWeightsError: the model there has other weights.
        CompExportError: its weights cannot be read.
    """
    record = run.read_record()
    name = record.get("model") or run.load_plan().model
    directory = _directory(run, record, name) if model is None else resolve_model(model)
    if isinstance(directory, str):
        raise DenseModelGoneError(f"{directory}: {remedy}")
    weights = record.get("model_weights")
    if weights is not None and weights_digest(directory) != weights:
        raise OtherWeightsError(
            f"{directory} has other weights than the {name} that {run.path} was made of, it is another "
            f"model of that name: {remedy}"
        )
    return directory


def _directory(run: RunDirectory, record: dict[str, Any], name: str) -> Path | str:
    """Return the recorded directory, or the reason why the model is not there."""
    stored = record.get("model_path")
    if stored is not None:
        directory = Path(stored)
        if (directory / "config.json").is_file():
            return directory
        return f"{run.path} was made of {name}, which is no longer at {stored}"
    try:
        return resolve_model(name, record.get("model_revision"))
    except CompExportError as error:
        return f"{run.path} was made of {name}, which is not available ({error})"
