"""Choosing the next token from its logits."""

import numpy as np
from numpy.typing import NDArray

from serve.generation.options import GenerationOptions


class Sampler:
    """Greedy, or drawn with temperature and nucleus (top-p) sampling (Holtzman et al., 2020)."""

    def __init__(self, options: GenerationOptions, stream: int = 0) -> None:
        """``stream`` tells the rows of a batch apart: each draws from its own random numbers."""
        self._temperature = options.temperature
        self._top_p = options.top_p
        self._random = np.random.default_rng([options.seed, stream])

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token of one row of ``logits [V]``, which are finite."""
        if self._temperature == 0:
            return int(np.argmax(logits))
        weights = next_token_probabilities(logits, self._temperature, self._top_p)
        reached = np.cumsum(weights)
        drawn = int(np.searchsorted(reached, self._random.random() * reached[-1], "right"))
        # A draw that is rounded up to the sum is behind the last token that has any probability.
        return min(drawn, int(np.flatnonzero(weights)[-1]))


def next_token_probabilities(
    logits: NDArray[np.float32], temperature: float, top_p: float
) -> NDArray[np.float64]:
    """Probabilities ``[V]`` after temperature and top-p, summing to 1.

    Top-p keeps the likeliest tokens until their probabilities reach ``top_p``: always the first,
    and, of equally likely tokens, those with lower ids first. However small a temperature is, the
    likeliest tokens have all of it: their distance is 0, and what overflows is the others'.
    """
    behind = logits.astype(np.float64) - np.float64(logits.max())
    with np.errstate(over="ignore"):
        weights = np.exp(behind / temperature)
    weights /= weights.sum()
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]  # probability of the likelier ones
        weights[order[before >= top_p]] = 0.0
        weights /= weights.sum()
    return weights
