import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.metrics.exact_match import exact_match, normalise, wilson_interval


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Fox , dog", "fox, dog"),
        ("fox,dog", "fox, dog"),
        ("  top   left.\n", "top left"),
        ("yes .", "yes"),
        ("a. b", "a. b"),
        ("", ""),
        (".", ""),
        ("fox,.", "fox,"),
    ],
)
def test_normalise(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


@given(st.text())
def test_case_and_white_space_are_ignored(text: str) -> None:
    assert normalise(f"  {normalise(text)}\n") in (normalise(text), normalise(normalise(text)))
    assert exact_match(text, f" {text} ")


def test_exact_match_ignores_nothing_else() -> None:
    assert exact_match("three", "Three.")
    assert not exact_match("three", "3")
    assert not exact_match("fox, dog", "dog, fox")
    assert not exact_match("fox", "a fox")


@pytest.mark.parametrize(("successes", "n"), [(90, 100), (0, 10), (10, 10), (1, 2), (700, 2000)])
def test_wilson_bounds_solve_its_equation(successes: int, n: int) -> None:
    # A bound is a proportion p whose own standard error puts the measured share z away from it.
    for bound in wilson_interval(successes, n):
        away = 1.959963984540054 * math.sqrt(bound * (1 - bound) / n)
        assert abs(successes / n - bound) == pytest.approx(away, abs=1e-9)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


def test_wilson_interval_edges() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="5 successes of 3"):
        wilson_interval(5, 3)
