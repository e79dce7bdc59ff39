"""Means over seeds and their intervals against tables, integrals and values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.study.intervals import Estimate, paired, t_quantile, within

# Two-sided 95 % quantiles as any table of Student's distribution has them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_quantiles_equal_the_table(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_a_quantile_of_99_percent():
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)


@given(st.integers(1, 12), st.floats(0.01, 8))
def test_probability_is_the_integral_of_the_density(freedom, t):
    x = np.linspace(-t, t, 20001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert within(t, freedom) == pytest.approx(np.trapezoid(density, x), abs=1e-6)


@pytest.mark.parametrize(("freedom", "confidence"), [(0, 0.95), (3, 1.0), (3, 0.0)])
def test_undefined_quantiles_are_refused(freedom, confidence):
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_quantile(freedom, confidence)


def test_a_mean_of_three_seeds_by_hand():
    result = Estimate.of([0.80, 0.82, 0.87])
    # Deviations −0.03, −0.01, 0.04: their squares sum to 0.0026, so s² = 0.0013.
    half = 4.303 * math.sqrt(0.0013) / math.sqrt(3)
    assert result.mean == pytest.approx(0.83)
    assert result.interval == pytest.approx((0.83 - half, 0.83 + half), abs=1e-4)
    assert result.n == 3


def test_one_seed_has_no_interval_of_its_own():
    assert Estimate.of([0.5]) == Estimate(0.5, None, 1)


def test_pairing_by_seed_cancels_common_variation():
    first = {0: 0.70, 1: 0.80, 2: 0.60, 7: 0.1}
    second = {2: 0.57, 0: 0.69, 1: 0.78, 8: 0.9}
    result = paired(first, second)
    # Differences 0.01, 0.02, 0.03: mean 0.02, s = 0.01.
    half = 4.303 * 0.01 / math.sqrt(3)
    assert result is not None
    assert result.mean == pytest.approx(0.02)
    assert result.interval == pytest.approx((0.02 - half, 0.02 + half), abs=1e-5)
    assert result.n == 3
    assert paired({0: 0.1}, {1: 0.1}) is None


def test_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for values in rng.normal(0.7, 0.05, (4000, 5)):
        low, high = Estimate.of(values.tolist()).interval
        held += low <= 0.7 <= high
    assert held / 4000 == pytest.approx(0.95, abs=0.012)
