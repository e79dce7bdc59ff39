"""The request of a pruning run: all its settings, saved so that ``--resume`` can compare them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comp.checkpoints.weights_digest import weights_digest
from comp.errors import CompExportError
from comp.latency.files import TableFile
from comp.pipeline.options import Recovery
from comp.runs import MADE, RunDirectory, dotted
from comp.search.job import MethodOptions
from comp.training.data import DataSizes
from comp.training.distillation import DistillOptions
from comp.training.recovery import RecoverOptions
from comp.utils.json_files import read_object

DENSE = "dense"  # key of request.json: the dense model (``comp.checkpoints.dense_model.described``)
# Values of settings that requests of earlier releases lack.
LATER: dict[str, object] = {"follow_links": False, "search.importance.formula": "cim"}


@dataclass(frozen=True)
class PruneRequest:
    """Everything a pruning run depends on."""

    model: str
    method: str
    search: MethodOptions
    recover: RecoverOptions
    sizes: DataSizes
    recovery: Recovery = "auto"
    lora_rank: int = 32
    data: str | None = None
    images: str | None = None
    follow_links: bool = False  # also links that lead out of ``images``
    distill: DistillOptions = field(default_factory=DistillOptions)
    faithful: bool = False  # the paper's recipe
    table: TableFile | None = None
    race: int = (
        0  # steps of recovery before lanes are compared (``comp.pipeline.race``); 0: no race
    )
    stream: bool = False  # leave the decoder in its files (``comp.families.streamed``)
    race_if_room: bool = False  # race only if it leaves enough recovery to the winner (the default)

    def __post_init__(self) -> None:
        if self.distill.what != "none" and self.recovery == "none":
            raise CompExportError(
                f"--distill {self.distill.what} is for training, and --recover none trains nothing: "
                "leave one of them out"
            )
        if self.stream and self.recovery != "none":
            raise CompExportError(
                f"--stream reads weights from their files, and --recover {self.recovery} would train them: "
                "add --recover none"
            )


def as_json(request: PruneRequest) -> dict[str, Any]:
    """Return the request as a JSON object."""
    return json.loads(json.dumps(asdict(request)))


def check_resumable(run: RunDirectory, request: PruneRequest, directory: Path) -> None:
    """Refuse to resume a run with other settings, or another model, than it was started with.

    Args:
        run: the run to resume.
        request: the present request.
        directory: the present checkpoint of ``request.model``.

    Raises:
        CompExportError: there is nothing to resume, or something differs (names it).
    """
    if not run.is_interrupted:
        raise CompExportError(f"nothing to resume in {run.path}: leave out --resume")
    saved = read_object(run.request, "start again with --force")
    if MADE in saved:
        raise CompExportError(
            f"{run.path} was begun by `{saved[MADE]}`: run that again, or start again with --force"
        )
    dense = saved.pop(DENSE, None)
    old, new = LATER | dotted(saved), dotted(as_json(request))
    different = [name for name, value in new.items() if old.get(name) != value]
    if different:
        name = different[0]
        raise CompExportError(
            f"{run.path} was started with {name} {old.get(name)!r}, not {new[name]!r}: resume with the "
            "same options, or start again with --force"
        )
    weights = dense.get("model_weights") if isinstance(dense, dict) else None
    if weights is not None and weights_digest(directory) != weights:
        raise CompExportError(
            f"{run.path} was started with other weights than {directory} has now, those that were at "
            f"{dense['model_path'] or dense['model']}: restore them, or start again with --force"
        )
