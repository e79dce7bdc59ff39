"""What a pruning run is asked for, stored so that a resumed run is the same run."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from comp.distillation import DistillOptions
from comp.errors import CompExportError
from comp.latency_files import TableFile
from comp.methods.base import MethodOptions
from comp.pruning_data import DataSizes
from comp.recover import RecoverOptions
from comp.runs import RunDirectory, dotted

Recovery = Literal["auto", "full", "lora", "none"]


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
    distill: DistillOptions = field(default_factory=DistillOptions)
    faithful: bool = False  # asked to be the paper's recipe
    table: TableFile | None = None
    race: int = 0  # steps of recovery before lanes are compared (``comp.race``); 0: no race
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


def check_resumable(run: RunDirectory, request: PruneRequest) -> None:
    """Refuse to go on with other settings than the run was started with.

    Raises:
        CompExportError: naming the settings that differ, or when there is nothing to resume.
    """
    if not run.request.is_file():
        raise CompExportError(f"nothing to resume in {run.path}: leave out --resume")
    stored = dotted(json.loads(run.request.read_text()))
    asked = dotted(plain(request))
    different = [name for name, value in asked.items() if stored.get(name) != value]
    if different:
        name = different[0]
        raise CompExportError(
            f"{run.path} was started with {name} {stored.get(name)!r}, not {asked[name]!r}: resume with "
            "the same options, or start again with --force"
        )
