"""What a family contributes to an artifact: everything that differs between families."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.plan import DropPlan, Workload
from export.artifact.manifest import Manifest
from export.weights.checkpoint import WeightSource

Written = Callable[[str], None]


@dataclass(frozen=True)
class FamilyExport:
    """A checkpoint, ready to be exported.

    Attributes:
        manifest: the class of the family's manifest.
        graphs: names of the files that ``build`` writes, in order.
        build: writes the graphs and their external data into a directory and tells of each.
        fields: those that only this family's manifest has.
        drops: where tokens are dropped.
        params: parameters in the graphs.
        macs: multiply-accumulates by part, on the workload.
        workload: what they are counted on.
    """

    manifest: type[Manifest]
    graphs: tuple[str, ...]
    build: Callable[[Path, Written], None]
    fields: dict[str, Any]
    drops: tuple[DropPlan, ...]
    params: int
    macs: dict[str, int]
    workload: Workload


UNUSED = ("position_ids",)  # buffers that old releases saved


def parameters(weights: WeightSource) -> int:
    """How many numbers the tensors of a checkpoint hold, buffers not counted."""
    return sum(
        math.prod(weights.shape(name)) for name in weights.names() if not name.endswith(UNUSED)
    )
