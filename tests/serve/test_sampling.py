"""Greedy, temperature, top-p and seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.errors import CompExportError
from serve.options import GenerationOptions
from serve.sampling import Sampler, next_token_probabilities


def brute_force(logits, temperature, top_p):
    """Top-p in the plainest way: take the likeliest token until enough probability is gathered."""
    weights = [np.exp(float(x) / temperature - float(max(logits)) / temperature) for x in logits]
    total = sum(weights)
    weights = [w / total for w in weights]
    kept, gathered = {}, 0.0
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        if top_p < 1 and gathered >= top_p:
            break
        kept[index] = weights[index]
        gathered += weights[index]
    total = sum(kept.values())
    return np.array([kept.get(i, 0.0) / total for i in range(len(weights))])


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.9]),
    top_p=st.sampled_from([0.01, 0.37, 0.5, 0.83, 0.99, 1.0]),
)
def test_top_p_equals_brute_force(logits, temperature, top_p):
    values = np.array(logits, dtype=np.float32) / 7
    found = next_token_probabilities(values, temperature, top_p)
    np.testing.assert_allclose(found, brute_force(values, temperature, top_p), atol=1e-9)


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(GenerationOptions(temperature=1.0, top_p=0.9, seed=3))
    draws = np.bincount([sampler.pick(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(draws, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)
    assert draws[3] == 0


def test_a_seed_repeats_and_streams_differ():
    logits = np.zeros(50, dtype=np.float32)

    def draws(seed, stream):
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=seed), stream)
        return [sampler.pick(logits) for _ in range(20)]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(2, 0)
    assert draws(1, 0) != draws(1, 1)


def test_greedy_takes_the_first_of_the_likeliest():
    assert Sampler(GenerationOptions()).pick(np.array([1, 5, 5, 2], dtype=np.float32)) == 1


def test_a_cold_temperature_does_not_overflow():
    logits = np.array([1e4, -1e4, 9e3], dtype=np.float32)
    assert next_token_probabilities(logits, 1e-3, 0.5).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": "abc"},
        {"keep_factor": 0.0},
        {"keep_factor": float("inf")},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(CompExportError, match=next(iter(wrong))):
        GenerationOptions(**wrong)
