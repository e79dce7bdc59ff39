"""Raising a threshold until it suffices, with few tries."""

from hypothesis import given, settings
from hypothesis import strategies as st

from comp.search.bisection import FINENESS, HIGHEST, LOWEST, find_threshold


def attempts(enough_from, before, close_below):
    """Return the result, and every threshold that was tried."""
    tried = []

    def attempt(value):
        tried.append(value)
        return value

    result = find_threshold(
        attempt,
        lambda value: value >= enough_from,
        lambda value: value <= close_below * enough_from,
        before,
    )
    return result, tried


positions = st.floats(-6.5, 6.5).map(lambda power: 2.718281828**power)


@given(enough_from=positions, before=st.one_of(st.just(0.0), positions))
@settings(deadline=None)
def test_the_lowest_sufficient_threshold_is_returned(enough_from, before):
    result, tried = attempts(enough_from, before, close_below=0)
    assert enough_from <= result <= FINENESS * enough_from
    assert result in tried
    assert len(set(tried)) == len(tried)


@given(enough_from=positions, before=st.one_of(st.just(0.0), positions))
@settings(deadline=None)
def test_a_close_result_ends_the_search(enough_from, before):
    result, tried = attempts(enough_from, before, close_below=1.2)
    assert enough_from <= result <= 1.2 * enough_from
    assert [value for value in tried if enough_from <= value <= 1.2 * enough_from] == [result]


def test_a_near_start_takes_few_tries():
    result, tried = attempts(enough_from=1.3, before=1.0, close_below=1.2)
    assert tried == [1.0, 2.0, 2.0**0.5]
    assert result == 2.0**0.5


def test_an_insufficient_range_gives_the_highest_threshold():
    result, tried = attempts(enough_from=2 * HIGHEST, before=0.0, close_below=0)
    assert result == tried[-1] == HIGHEST


def test_a_sufficient_range_gives_the_lowest_threshold():
    result, tried = attempts(enough_from=0.0, before=0.5, close_below=0)
    assert result == tried[-1] == LOWEST
