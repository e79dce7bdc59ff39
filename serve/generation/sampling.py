"""Choose the next token from its logits."""

import numpy as np
from numpy.typing import NDArray

from serve.generation.options import GenerationOptions
from serve.generation.results import TokenLogprobs


class Sampler:
    """Greedy, or sampling with temperature and nucleus (top-p) sampling (Holtzman et al., 2020)."""

    def __init__(self, options: GenerationOptions, stream: int = 0) -> None:
        """``stream`` distinguishes the rows of a batch: each draws its own random numbers."""
        self._temperature = options.temperature
        self._top_p = options.top_p
        self._random = np.random.default_rng([options.seed, stream])

    def pick(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token from one row of ``logits [V]``, which are finite."""
        if self._temperature == 0:
            return int(np.argmax(logits))
        weights = next_token_probabilities(logits, self._temperature, self._top_p)
        reached = np.cumsum(weights)
        drawn = int(np.searchsorted(reached, self._random.random() * reached[-1], "right"))
        # A draw rounded up to the sum would exceed the last token with non-zero probability.
        return min(drawn, int(np.flatnonzero(weights)[-1]))


def next_token_probabilities(
    logits: NDArray[np.float32], temperature: float, top_p: float
) -> NDArray[np.float64]:
    """Probabilities ``[V]`` after temperature and top-p, summing to 1.

    Top-p keeps the likeliest tokens until their probabilities reach ``top_p``: always the first, and
    among equally likely tokens those with lower ids first. However small the temperature is, the
    likeliest tokens share all probability: their distance is 0, and only the others overflow.
    """
    distance = logits.astype(np.float64) - np.float64(logits.max())
    with np.errstate(over="ignore"):
        weights = np.exp(distance / temperature)
    weights /= weights.sum()
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]  # probability of the likelier ones
        weights[order[before >= top_p]] = 0.0
        weights /= weights.sum()
    return weights


def logprobs_of(
    logits: NDArray[np.float32], token_id: int, options: GenerationOptions
) -> TokenLogprobs | None:
    """Log-probabilities of a chosen token and of the likeliest ones by ``logits [V]``; None if not wanted."""
    if options.top_logprobs is None:
        return None
    shifted = logits.astype(np.float64) - np.float64(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[: options.top_logprobs]
    return TokenLogprobs(
        float(logprobs[token_id]), tuple((int(each), float(logprobs[each])) for each in best)
    )
