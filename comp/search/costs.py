"""Cost of a structure in a search: multiply-accumulates, or predicted time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comp.adapter import FamilyAdapter
from comp.masks import StructureCounts
from comp.plan import Drops, Place, RateOf, Workload, shares_of

if TYPE_CHECKING:
    from comp.latency.table import LatencyTable

NANOSECONDS = 1_000_000  # in a millisecond

Shares = Mapping[Place, tuple[float, float]]


@dataclass(frozen=True)
class Costs:
    """The costs of a model's structures.

    Attributes:
        table: predicts milliseconds; without one only FLOPs are available.
        rate_of: the cost that a rate is a share of and that a search removes.
    """

    adapter: FamilyAdapter
    table: "LatencyTable | None" = None
    rate_of: RateOf = "flops"

    def __post_init__(self) -> None:
        if self.rate_of == "latency" and self.table is None:
            raise ValueError("costs in milliseconds without a latency table")

    def of(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        """Cost in whole multiply-accumulates, or in whole nanoseconds.

        For fixed drop places it is monotone: fewer heads, channels or tokens never cost more.
        """
        if self.rate_of == "flops":
            return self.macs(counts, shares, on)
        assert self.table is not None
        return round(NANOSECONDS * self.table.milliseconds(counts, shares, on))

    def of_drops(self, drops: Drops, on: Workload, counts: StructureCounts) -> int:
        """Cost in the unit of ``of``, from drops; multiply-accumulates include ranking and merging."""
        if self.rate_of == "flops":
            return self.adapter.macs_of_drops(drops, on, counts)
        return self.of(counts, shares_of(drops), on)

    def macs(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        """Multiply-accumulates."""
        return self.adapter.macs(counts, dict(shares), on)

    def milliseconds(self, counts: StructureCounts, shares: Shares, on: Workload) -> float | None:
        """Predicted time to the first token, if there is a table."""
        return None if self.table is None else self.table.milliseconds(counts, shares, on)
