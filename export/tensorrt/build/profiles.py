"""Optimisation profiles: the smallest, the usual and the largest shape of each input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from comp.errors import CompExportError

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The sizes of one named dimension."""

    low: int
    usual: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.usual <= self.high:
            raise ValueError(f"sizes {self.low}, {self.usual}, {self.high} are not ascending")


@dataclass(frozen=True)
class Profile:
    """A phase, such as ``prefill``: sizes by the dimension's name."""

    name: str
    sizes: Mapping[str, Range]

    def shapes(self, dims: Sequence[int | str]) -> tuple[Dims, Dims, Dims]:
        """Smallest, usual and largest shape of an input with these dimensions.

        Raises:
            CompExportError: a dimension has no size here.
        """
        for dim in dims:
            if isinstance(dim, str) and dim not in self.sizes:
                raise CompExportError(
                    f"profile {self.name} has no size for the dimension {dim!r}: the graph is not "
                    "one of `comp-export onnx`"
                )
        ranges = [self.sizes[d] if isinstance(d, str) else Range(d, d, d) for d in dims]
        return (
            tuple(r.low for r in ranges),
            tuple(r.usual for r in ranges),
            tuple(r.high for r in ranges),
        )


@dataclass(frozen=True)
class EngineGraph:
    """One graph of an artifact, with the profiles of its engine.

    Attributes:
        name: name of the engine file, without ``.engine``.
        graph: file in the artifact.
        profiles: the phases; the engine has one optimisation profile for each.
        fixed: named dimensions that become numbers (the sizes of caches).
    """

    name: str
    graph: str
    profiles: tuple[Profile, ...]
    fixed: Mapping[str, int] = field(default_factory=dict)
