"""The dense model that a run was made of: what ``run.json`` says of it, and finding it again."""

from pathlib import Path
from typing import Any

from comp.checkpoints.locate import EMBEDDED, resolve_model
from comp.checkpoints.weights_digest import weights_digest
from comp.errors import CompExportError
from comp.runs import RunDirectory

SNAPSHOTS = "snapshots"  # of a repository in the hub's cache: a folder for each revision
ELSEWHERE = "say where it is now with --model"


class DenseModelGoneError(CompExportError):
    """The dense model is not where the run says."""


class OtherWeightsError(CompExportError):
    """The model in that place has other weights than the run was made of."""


def described(name: str, directory: Path) -> dict[str, Any]:
    """The fields of ``run.json`` about the dense model.

    Args:
        name: as it was asked for: an embedded model, a directory, or a hub id.
        directory: where its checkpoint is.

    Returns:
        ``model``, ``model_path`` (absolute; of a directory alone), ``model_revision`` (of the hub alone) and
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
    """The directory of the dense model that a run was made of, its weights compared with the run's.

    Runs of earlier releases do not say which weights they were made of: of these nothing is compared.

    Args:
        run: whose ``run.json`` says what it was made of.
        model: where the model is now, if it is no longer there: any name that ``--model`` takes.
        remedy: what a user can do when it is not there, or is another one.

    Raises:
        DenseModelGoneError: it is neither there nor on the hub.
        OtherWeightsError: another model is there now.
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
    """Where the run says; or why it is not there."""
    stored = record.get("model_path")
    if stored is not None:
        directory = Path(stored)
        if (directory / "config.json").is_file():
            return directory
        return f"{run.path} was made of {name}, which is no longer at {stored}"
    try:
        return resolve_model(name, record.get("model_revision"))
    except CompExportError as error:
        return f"{run.path} was made of {name}, which is not to be had ({error})"
