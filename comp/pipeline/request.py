"""What a pruning run is asked for, stored so that a resumed run is the same run."""

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

DENSE = "dense"  # in request.json: which model it is (``comp.checkpoints.dense_model.described``)
LATER = {"follow_links": False}  # what requests of earlier releases leave out


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
    follow_links: bool = False  # of ``images``, out of it
    distill: DistillOptions = field(default_factory=DistillOptions)
    faithful: bool = False  # asked to be the paper's recipe
    table: TableFile | None = None
    race: int = (
        0  # steps of recovery before lanes are compared (``comp.pipeline.race``); 0: no race
    )
    stream: bool = False  # leave the decoder in its files (``comp.families.streamed``)
    race_if_room: bool = False  # nobody asked for it: not where it would leave little to the winner

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


def plain(request: PruneRequest) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(asdict(request)))


def check_resumable(run: RunDirectory, request: PruneRequest, directory: Path) -> None:
    """Refuse to go on with other settings, or another model, than the run was started with.

    Args:
        run: to go on with.
        request: what is asked for now.
        directory: the checkpoint that ``request.model`` is now.

    Raises:
        CompExportError: naming what differs, or when there is nothing to resume.
    """
    if not run.is_interrupted:
        raise CompExportError(f"nothing to resume in {run.path}: leave out --resume")
    found = read_object(run.request, "start again with --force")
    if MADE in found:
        raise CompExportError(
            f"{run.path} was begun by `{found[MADE]}`: carry that out again, or start again with --force"
        )
    dense = found.pop(DENSE, None)
    stored = dotted(found)
    asked = dotted(plain(request))
    different = [
        name for name, value in asked.items() if stored.get(name, LATER.get(name)) != value
    ]
    if different:
        name = different[0]
        raise CompExportError(
            f"{run.path} was started with {name} {stored.get(name)!r}, not {asked[name]!r}: resume with "
            "the same options, or start again with --force"
        )
    weights = dense.get("model_weights") if isinstance(dense, dict) else None
    if weights is not None and weights_digest(directory) != weights:
        raise CompExportError(
            f"{run.path} was started with other weights than {directory} has now, those that were at "
            f"{dense['model_path'] or dense['model']}: bring them back, or start again with --force"
        )
