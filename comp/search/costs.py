"""What a structure costs, the one notion of it in a search: multiply-accumulates, or predicted time."""

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
        table: predicts milliseconds; without one only FLOPs are known.
        rate_of: which of the two a rate is a share of, and a search removes.
    """

    adapter: FamilyAdapter
    table: "LatencyTable | None" = None
    rate_of: RateOf = "flops"

    def __post_init__(self) -> None:
        if self.rate_of == "latency" and self.table is None:
            raise ValueError("costs in milliseconds without a latency table")

    def of(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        """In whole multiply-accumulates, or in whole nanoseconds.

        With places for dropping tokens given, less of anything never costs more.
        """
        if self.rate_of == "flops":
            return self.macs(counts, shares, on)
        assert self.table is not None
        return round(NANOSECONDS * self.table.milliseconds(counts, shares, on))

    def of_drops(self, drops: Drops, on: Workload, counts: StructureCounts) -> int:
        """As ``of``; in multiply-accumulates with what ranking and merging takes."""
        if self.rate_of == "flops":
            return self.adapter.macs_of_drops(drops, on, counts)
        return self.of(counts, shares_of(drops), on)

    def macs(self, counts: StructureCounts, shares: Shares, on: Workload) -> int:
        """Multiply-accumulates."""
        return self.adapter.macs(counts, dict(shares), on)

    def milliseconds(self, counts: StructureCounts, shares: Shares, on: Workload) -> float | None:
        """Predicted time to the first token, if there is a table."""
        return None if self.table is None else self.table.milliseconds(counts, shares, on)
