"""Greedy, temperature, top-p and seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.errors import CompExportError
from serve.generation.options import GenerationOptions
from serve.generation.sampling import Sampler, next_token_probabilities


def brute_force(logits, temperature, top_p):
    """Top-p written out: take the likeliest tokens until their probability suffices."""
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
    result = next_token_probabilities(values, temperature, top_p)
    np.testing.assert_allclose(result, brute_force(values, temperature, top_p), atol=1e-9)


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


def test_greedy_takes_the_first_maximum():
    assert Sampler(GenerationOptions()).pick(np.array([1, 5, 5, 2], dtype=np.float32)) == 1


def test_a_cold_temperature_does_not_overflow():
    logits = np.array([1e4, -1e4, 9e3], dtype=np.float32)
    assert next_token_probabilities(logits, 1e-3, 0.5).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 10**18},
        {"max_new_tokens": 10**5000},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": "8"},
        {"max_new_tokens": True},
        {"max_new_tokens": None},
        {"temperature": "hot"},
        {"temperature": None},
        {"temperature": float("inf")},
        {"temperature": 10**5000},
        {"temperature": [0.5]},
        {"top_p": float("nan")},
        {"top_p": "1"},
        {"seed": 2**64},
        {"seed": 1.0},
        {"stop": None},
        {"stop": (1,)},
        {"stop": {"a": 1}},
        {"keep_factor": float("nan")},
        {"keep_factor": "2"},
        {"keep_factor": 10**400},
        {"ignore_eos": 1},
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


def test_options_at_their_limits_are_accepted():
    limits = {"max_new_tokens": 2**31 - 1, "seed": 2**64 - 1, "keep_factor": 5e-324}
    for name, value in limits.items():
        assert getattr(GenerationOptions(**{name: value}), name) == value
    numpy = GenerationOptions(max_new_tokens=np.int64(3), temperature=np.float32(0.5))
    assert numpy == GenerationOptions(max_new_tokens=3, temperature=0.5)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(FINITE, min_size=1, max_size=9),
    temperature=st.floats(0, 100, exclude_min=True) | st.sampled_from([5e-324, 1e-320, 1e-300]),
    top_p=st.floats(0, 1, exclude_min=True) | st.sampled_from([5e-324, 1e-310]),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_allowed_option_draws_a_probable_token(logits, temperature, top_p, seed):
    """For any allowed option, no token of probability 0 is drawn, and probabilities sum to 1."""
    values = np.array(logits, dtype=np.float32)
    weights = next_token_probabilities(values, temperature, top_p)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)
    sampler = Sampler(GenerationOptions(temperature=temperature, top_p=top_p, seed=seed))
    for _ in range(3):
        assert weights[sampler.pick(values)] > 0


@pytest.mark.parametrize("small", [5e-324, 1e-320, 1e-308])
def test_the_smallest_temperature_or_top_p_is_greedy(small):
    rng = np.random.default_rng(0)
    for seed in range(20):
        logits = rng.normal(size=30).astype(np.float32)
        for options in ({"temperature": small}, {"temperature": 1.0, "top_p": small}):
            assert Sampler(GenerationOptions(**options, seed=seed)).pick(logits) == logits.argmax()


def test_a_draw_of_almost_one_is_a_token():
    """A draw is below 1, but its product with a sum may be rounded up to the sum."""
    sampler = Sampler(GenerationOptions(temperature=1.0, top_p=0.9))
    sampler._random = type("AlmostOne", (), {"random": lambda self: 1 - 2**-53})()
    logits = np.log(np.array([0.1] * 10, dtype=np.float32))
    assert sampler.pick(logits) in range(10)
