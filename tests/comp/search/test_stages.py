"""The mode of a stage when another has little left: ``_Stages`` over a search of plain numbers."""

from typing import Any

import pytest

from comp.adapter import Mode
from comp.errors import CompExportError
from comp.methods.comp import _Stages
from comp.search.job import MethodOptions, PruningJob
from comp.search.saved_state import SavedSearch
from comp.search.strategy import ModeCost, StrategyOptions

CAP = 3  # the limit of a part in one stage
PART = Mode("language_parameters", part="language")
MODES = [Mode("vision_tokens", tokens="vision"), Mode("language_tokens", tokens="text")]


class Numbers:
    """A search whose state is the remaining costs; a mode removes the request, up to its remainder."""

    def __init__(self, **left: int) -> None:
        self.left = left

    def cost(self, state: int) -> int:
        return state

    def floor(self, state: int, modes: list[Mode]) -> int:
        return state - sum(self.left[mode.name] for mode in modes)

    def advance(self, state: int, mode: Mode, target: int, to_the_end: bool = False) -> int:
        most = self.left[mode.name] if mode.part is None else min(CAP, self.left[mode.name])
        return max(target, state - most)


def advanced(
    search: Numbers,
    exhausted: tuple[str, ...] = (),
    macs: int = 1000,
    cost: float | None = 0.1,
) -> Any:
    """A stage of a search for half of 1000 MACs in five stages of 100; text tokens look cheaper."""
    options = MethodOptions(0.5, tuple(search.left), 5, strategy=StrategyOptions(exploration=0.0))
    nothing: Any = None
    job = PruningJob(nothing, nothing, nothing, options, "numbers", nothing, nothing)
    stages: Any = _Stages(job, search, 1000, 500)  # type: ignore[arg-type]
    costs = {"vision_tokens": ModeCost(0.3, 1), "language_tokens": ModeCost(cost, 4)}
    saved: Any = SavedSearch(macs, 0, 0.9, 0.95, costs, exhausted)  # type: ignore[arg-type]
    costs |= {PART.name: ModeCost(0.0, 2)} if PART.name in search.left else {}
    name, _, moved, spent = stages._advanced(saved, [*MODES, PART], 1, lambda line: None)
    return name, moved, spent


def test_the_cheapest_mode_removes_its_share():
    assert advanced(Numbers(vision_tokens=400, language_tokens=400)) == ("language_tokens", 900, ())


def test_a_mode_can_remove_less_than_its_share():
    assert advanced(Numbers(vision_tokens=400, language_tokens=25)) == ("language_tokens", 975, ())


def test_a_nearly_exhausted_mode_is_skipped():
    result = advanced(Numbers(vision_tokens=400, language_tokens=24))
    assert result == ("vision_tokens", 900, ("language_tokens",))


@pytest.mark.parametrize(("left", "exhausted"), [(25, False), (24, True)])
def test_exhaustion_depends_on_the_remainder_not_on_the_stage_limit(left, exhausted):
    search = Numbers(vision_tokens=400, language_tokens=400, language_parameters=left)
    result = advanced(search)
    if exhausted:
        assert result == ("language_tokens", 900, ("language_parameters",))
    else:
        assert result == ("language_parameters", 1000 - CAP, ())


def test_an_untried_mode_removes_its_small_remainder():
    search = Numbers(vision_tokens=400, language_tokens=1)
    assert advanced(search, cost=None) == ("language_tokens", 999, ())


def test_the_last_mode_continues_for_less():
    search = Numbers(vision_tokens=3, language_tokens=0)
    assert advanced(search, ("language_tokens",)) == ("vision_tokens", 997, ("language_tokens",))


def test_small_remainders_are_removed_when_nothing_else_is_left():
    search = Numbers(vision_tokens=0, language_tokens=3)
    assert advanced(search, ("language_tokens",)) == ("language_tokens", 997, ())


def test_stages_near_the_target_remove_little():
    assert advanced(Numbers(vision_tokens=9, language_tokens=5), macs=520) == (
        "language_tokens",
        515,
        (),
    )


def test_no_mode_left_is_an_error():
    with pytest.raises(CompExportError, match=r"0\.5 is beyond what modes vision_tokens"):
        advanced(Numbers(vision_tokens=0, language_tokens=0))


def test_a_stage_trains_in_proportion_to_the_costs_that_it_removes():
    options = MethodOptions(0.5, ("vision_tokens",), 5, steps_per_stage=4)
    nothing: Any = None
    job = PruningJob(nothing, nothing, nothing, options, "numbers", nothing, nothing)
    stages: Any = _Stages(job, Numbers(), 1000, 500)  # type: ignore[arg-type]
    assert [stages._steps_at(macs) for macs in (1000, 900, 885, 520, 500, 480)] == [
        0,
        4,
        5,
        19,
        20,
        20,
    ]
