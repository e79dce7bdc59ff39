import math

import pytest

from comp.search.strategy import (
    ModeCost,
    StrategyOptions,
    better_mode,
    choose_mode,
    exploration_probabilities,
    history_weight,
    stage_cost,
    updated_cost,
)

OPTIONS = StrategyOptions()


def test_cost_is_metric_lost_per_flops_removed():
    assert stage_cost(0.90, 0.85, 0.1) == pytest.approx(0.5)
    assert stage_cost(0.85, 0.90, 0.1) == 0.0  # training repaired an earlier stage


@pytest.mark.parametrize(
    ("interval", "weight"), [(1, 0.4), (2, 0.32), (5, 0.08), (6, 0.0), (9, 0.0)]
)
def test_history_fades_with_the_interval(interval, weight):
    assert history_weight(OPTIONS, interval) == pytest.approx(weight)


def test_costs_blend_with_history():
    first = updated_cost(OPTIONS, ModeCost(), stage=3, cost=1.0)
    assert first == ModeCost(1.0, 3)
    second = updated_cost(OPTIONS, first, stage=4, cost=0.0)
    assert second.cost == pytest.approx(0.4)
    without = StrategyOptions(history=0.0)
    assert updated_cost(without, first, stage=4, cost=0.0).cost == 0.0


def test_idle_modes_are_explored_more():
    costs = [ModeCost(0.0, 9), ModeCost(0.0, 4)]
    recent, idle = exploration_probabilities(OPTIONS, costs, stage=10)
    assert idle / recent == pytest.approx(math.exp((6 - 1) / 5))
    assert recent + idle == pytest.approx(1)


def test_the_cheapest_known_mode_is_next_after_the_untried():
    quiet = StrategyOptions(exploration=0.0)
    costs = {"a": ModeCost(0.3, 1), "b": ModeCost(0.1, 2), "c": ModeCost()}
    assert choose_mode(quiet, costs, 3, seed=0) == ("c", False)
    costs["c"] = ModeCost(0.2, 3)
    assert choose_mode(quiet, costs, 4, seed=0) == ("b", False)


def test_without_cas_modes_take_turns():
    turns = StrategyOptions(cost_aware=False)
    costs = {"a": ModeCost(0.0, 2), "b": ModeCost(9.0, 1)}
    assert choose_mode(turns, costs, 3, seed=0) == ("b", False)


def test_exploration_has_the_given_frequency_and_repeats_with_the_seed():
    costs = {"a": ModeCost(0.0, 1), "b": ModeCost(1.0, 1)}
    draws = [choose_mode(OPTIONS, costs, stage, seed=5) for stage in range(2, 2002)]
    assert 0.16 < sum(explored for _, explored in draws) / len(draws) < 0.24
    assert draws == [choose_mode(OPTIONS, costs, stage, seed=5) for stage in range(2, 2002)]
    assert all(name == "a" for name, explored in draws if not explored)


@pytest.mark.parametrize(
    ("cost", "undone", "better"),
    [
        (0.2, {}, None),  # b's 0.1 is not known to be less than half of it
        (0.21, {}, "b"),
        (0.21, {"b": 0.3}, None),  # b was tried in this stage, and costs more
        (0.31, {"b": 0.3}, "b"),  # a cost measured in this stage needs no margin
        (0.9, {"b": 0.5}, "c"),  # whose 0.4 is the least, and less than half
    ],
)
def test_a_stage_yields_to_a_much_cheaper_mode(cost, undone, better):
    costs = {"a": ModeCost(0.0, 3), "b": ModeCost(0.1, 2), "c": ModeCost(0.4, 1), "d": ModeCost()}
    assert better_mode(costs, "a", cost, undone) == better


def test_the_first_modes_are_compared_with_nothing():
    assert better_mode({"a": ModeCost(5.0, 1), "b": ModeCost()}, "a", 5.0, {}) is None
