"""Find the latency table of a command."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from comp.errors import CompExportError
from comp.latency.request import measured_families
from comp.latency.table import LatencyTable
from comp.plan import RateOf

TABLES = Path("runs") / "latency"


@dataclass(frozen=True)
class TableFile:
    """A table file with its digest: a resumed run must use the same table."""

    path: str
    sha256: str

    @classmethod
    def at(cls, path: Path) -> "TableFile":
        """Return the file at ``path``, after checking that it is a table.

        Raises:
            CompExportError: as ``LatencyTable.load``.
        """
        LatencyTable.load(path)
        return cls(str(path), sha256(path.read_bytes()).hexdigest())


def default_table(model: str) -> Path:
    """Path of a model's table, where ``profile`` writes it and ``prune`` reads it."""
    return TABLES / f"{Path(model).name}.json"


def table_for(model: str, family: str, rate_of: RateOf, given: Path | None) -> TableFile | None:
    """Return the latency table to prune by or to predict from; ``None`` if neither is requested.

    Raises:
        CompExportError: the family has none, there is none yet, or it cannot be read.
    """
    if rate_of == "flops" and given is None:
        return None
    if family not in measured_families():
        raise CompExportError(
            f"{model} is a {family}: there are latency tables of {', '.join(measured_families())} alone; "
            "prune it by --cost flops, without --latency-table"
        )
    path = given or default_table(model)
    if not path.is_file():
        raise CompExportError(
            f"no latency table at {path}: measure one with `comp-export profile --model {model}`, or "
            "pass --latency-table FILE"
        )
    return TableFile.at(path)
