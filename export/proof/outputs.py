"""Kinds of outputs of a model, and the differences that rounding may cause in each.

A bound must be one that a wrong artifact can exceed: no two unit vectors differ by more than 2, so that an
absolute bound of 4 on them proves nothing. Each kind of output has its own measures and bounds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.artifact.manifest import Precision

OutputKind = Literal["logits", "embedding", "statement", "similarity"]
Measure = Literal["absolute", "share of spread", "cosine distance", "probability"]
Measured = tuple[OutputKind, Measure]

FEWEST_TO_SPREAD = 8  # logits: of fewer the standard deviation says nothing


@dataclass(frozen=True)
class Output:
    """Numbers of one kind.

    Attributes:
        kind: kind of the numbers, which decides how they are compared.
        values: ``[rows, n]`` float: each row is an embedding, the logits of one choice, or similarities.
        scale: for similarities, the factor that their cosines were multiplied by.
    """

    kind: OutputKind
    values: NDArray[Any]
    scale: float = 1.0


def logits(values: NDArray[Any]) -> Output:
    """Scores ``[n]`` of the candidates of one choice, such as all words."""
    return Output("logits", values.reshape(1, -1))


def statement(values: NDArray[Any]) -> Output:
    """The two logits ``[2]`` of false and true, or of no match and match."""
    return Output("statement", values.reshape(1, -1))


def statement_logit(value: NDArray[Any]) -> Output:
    """The logit ``[1]`` of a match, if the other one is not available."""
    return Output("statement", value.reshape(1, -1))


def embedding(*values: NDArray[Any]) -> Output:
    """Unit vectors ``[n]`` of one width."""
    return Output("embedding", np.stack(values))


def similarity(values: NDArray[Any], scale: float = 1.0) -> Output:
    """Cosines ``[n]``, each multiplied by ``scale``."""
    return Output("similarity", values.reshape(1, -1), scale)


@dataclass(frozen=True)
class Bounds:
    """Largest differences of outputs of a correct artifact, in a precision.

    Attributes:
        logits: largest difference of logits.
        spread: root mean square of the difference of a row of logits, as a share of the standard
            deviation of the reference's row.
        cosine: largest cosine distance of two embeddings, 1 - cosine.
        probability: largest difference of the probability that a statement is true.
        statement: largest difference of the two logits of a statement: probabilities near 0 or 1 hide one.
        similarity: largest difference of a cosine.
    """

    logits: float
    spread: float
    cosine: float
    probability: float
    statement: float
    similarity: float

    @property
    def embedding(self) -> float:
        """Largest difference of an element of unit vectors at the largest cosine distance."""
        return math.sqrt(2 * self.cosine)

    def of(self, measured: Measured) -> float:
        """The bound of a measure of a kind."""
        kind, measure = measured
        if measure == "absolute":
            return float(getattr(self, kind))
        return {
            "share of spread": self.spread,
            "cosine distance": self.cosine,
            "probability": self.probability,
        }[measure]

    def __add__(self, other: "Bounds") -> "Bounds":
        """Return bounds for two roundings: differences add up, and so do angles."""
        return Bounds(
            self.logits + other.logits,
            self.spread + other.spread,
            (math.sqrt(self.cosine) + math.sqrt(other.cosine)) ** 2,
            min(1.0, self.probability + other.probability),
            self.statement + other.statement,
            self.similarity + other.similarity,
        )


_IN_8_BITS = Bounds(
    logits=1.0, spread=0.15, cosine=1e-3, probability=0.03, statement=0.3, similarity=0.01
)
# A few times what correct artifacts give: the embedded models, and small random ones, whose outputs hang on
# rounding most (docs/explanation/proof.md has the numbers). Rounding adds up over layers of larger models.
BOUNDS: Mapping[Precision, Bounds] = {
    # Runtimes add in another order than torch.
    "float32": Bounds(
        logits=1e-3, spread=1e-4, cosine=1e-7, probability=1e-4, statement=1e-3, similarity=1e-5
    ),
    # 11 bits of mantissa in all that is computed.
    "float16": Bounds(
        logits=0.25, spread=0.01, cosine=1e-5, probability=3e-3, statement=0.05, similarity=2.5e-3
    ),
    # 8 bits of mantissa.
    "bfloat16": Bounds(
        logits=1.0, spread=0.08, cosine=1e-3, probability=0.03, statement=0.3, similarity=0.01
    ),
    # torch has the same integers: what differs are the layers' inputs, which runtimes round to 8 bits.
    "int8": _IN_8_BITS,
    "int4": _IN_8_BITS,
}


def differences(expected: Output, actual: Output) -> dict[Measured, float]:
    """The largest difference by each measure of the kind, over the rows; NaN where a number is none.

    Args:
        expected: numbers of the reference.
        actual: the same numbers of another variant.
    """
    kind = expected.kind
    mine, theirs = (each.values.astype(np.float64) for each in (expected, actual))
    apart = np.abs(mine - theirs) / expected.scale
    result: dict[Measured, float] = {(kind, "absolute"): _most(apart)}
    if kind == "embedding":
        lengths = np.linalg.norm(mine, axis=-1) * np.linalg.norm(theirs, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[kind, "cosine distance"] = _most(1 - (mine * theirs).sum(-1) / lengths)
    elif kind == "statement" and mine.shape[-1] == 2:
        result[kind, "probability"] = _most(np.abs(_truth(mine) - _truth(theirs)))
    elif kind == "logits" and mine.shape[-1] >= FEWEST_TO_SPREAD:
        spread = mine.std(axis=-1)
        root_mean_square = np.sqrt((apart**2).mean(axis=-1))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(root_mean_square == 0, 0.0, root_mean_square / spread)
        result[kind, "share of spread"] = _most(share)
    return result


def larger(one: float, other: float) -> float:
    """The larger of two differences; NaN is larger than any."""
    return one if math.isnan(one) or other <= one else other


def _most(values: NDArray[np.float64]) -> float:
    """The largest, NaN where one is none; 0 of no values."""
    return float(values.max()) if values.size else 0.0


def _truth(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the second of two logits ``[..., 2]``."""
    return 1 / (1 + np.exp(np.clip(logits[..., 0] - logits[..., 1], -700, 700)))


@dataclass
class Worst:
    """The largest differences of many outputs, by kind and measure."""

    by: dict[Measured, float] = field(default_factory=dict)

    def add(self, others: Mapping[Measured, float]) -> None:
        """Add other differences; one that is no number is larger than any."""
        for measured, value in others.items():
            self.by[measured] = larger(self.by.get(measured, 0.0), value)

    @property
    def absolute(self) -> float:
        """The largest difference of two numbers, over all kinds; a cosine's in its own scale."""
        largest = 0.0
        for (_, measure), value in self.by.items():
            if measure == "absolute":
                largest = larger(largest, value)
        return largest

    def beyond(self, bounds: Bounds) -> list[Measured]:
        """The measures that exceed their bound, or are no number."""
        return [each for each, value in self.by.items() if not value <= bounds.of(each)]

    def absolute_bound(self, bounds: Bounds) -> float:
        """The largest absolute bound of the kinds that were compared; of none, that of logits."""
        kinds = [each for each in self.by if each[1] == "absolute"]
        return max((bounds.of(each) for each in kinds), default=bounds.logits)

    def to_dicts(self, bounds: Bounds) -> list[dict[str, Any]]:
        """Return its entry in ``verify.json``."""
        return [
            {
                "kind": kind,
                "measure": measure,
                "worst": value if math.isfinite(value) else None,
                "bound": bounds.of((kind, measure)),
            }
            for (kind, measure), value in self.by.items()
        ]


def compared(
    expected: Sequence[Output], actual: Sequence[Output]
) -> Iterable[dict[Measured, float]]:
    """Return the differences of outputs in the same order on both sides."""
    for mine, theirs in zip(expected, actual, strict=True):
        yield differences(mine, theirs)
