"""Bounds of one stage of a search."""

from itertools import pairwise

import pytest
import torch

from comp.adapter import Forwarding
from comp.masks import Masks
from comp.plan import ImageSelection
from comp.search.stage import ImportanceOptions, Search, SearchState
from comp.tokens.drop_rules import RatioRule
from comp.utils.compute import Compute
from tests.comp.families.clip.test_adapter import captioned
from tests.comp.small import questions
from tests.comp.small_clip import random_clip


@pytest.fixture(scope="module")
def search():
    adapter = random_clip(2)
    calibration = [adapter.collate(captioned(4))]
    options = ImportanceOptions(min_channels=4)
    workload = adapter.workload(calibration)
    compute = Compute("cpu", "float32")
    return Search(adapter, compute, calibration, options, workload, stages=8)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_stage_cuts_no_more_than_its_share_of_a_part(search, part):
    """A stage's share of all FLOPs may be more than a small part has."""
    mode = next(mode for mode in search.adapter.modes if mode.part == part)
    whole = SearchState(Masks.ones(search.adapter.blocks))
    before, floor = search.macs(whole), search.floor(whole, [mode])
    cut = before - search.macs(search.advance(whole, mode, 0))
    largest_unit = 0.1 * (before - floor)
    most = (before - floor) / 4
    assert most <= cut <= most + largest_unit


def test_a_search_of_one_stage_can_cut_everything(search):
    mode = next(mode for mode in search.adapter.modes if mode.part == "language")
    whole = SearchState(Masks.ones(search.adapter.blocks))
    parts = (search.adapter, search.compute, search.calibration, search.options, search.workload)
    coarse = Search(*parts, stages=1)
    assert coarse.macs(coarse.advance(whole, mode, 0)) == coarse.floor(whole, [mode])


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_stage_leaves_most_of_a_parts_remainder(search, part):
    """An exploring draw must not take the last of a small part, unless nothing else is left."""
    mode = next(mode for mode in search.adapter.modes if mode.part == part)
    whole = SearchState(Masks.ones(search.adapter.blocks))
    floor, state, rests = search.floor(whole, [mode]), whole, []
    for _ in range(6):
        rests.append(search.macs(state) - floor)
        state = search.advance(state, mode, 0)
    largest_unit = 0.1 * rests[0]
    assert all(after >= before * 2 / 3 - largest_unit for before, after in pairwise(rests))
    assert rests[-1] > 0
    end = state
    for _ in range(9):
        end = search.advance(end, mode, 0, to_the_end=True)
    assert search.macs(end) == floor


def test_a_small_request_is_met_exactly(search):
    mode = next(mode for mode in search.adapter.modes if mode.part == "vision")
    whole = SearchState(Masks.ones(search.adapter.blocks))
    before = search.macs(whole)
    target = round(0.98 * before)
    left = search.macs(search.advance(whole, mode, target))
    assert 0.9 * before < left <= target


@pytest.mark.parametrize("selecting", [False, True])
def test_shares_are_those_of_a_whole_pass(adapter, selecting):
    if selecting:
        adapter = adapter.selecting(ImageSelection(tower_tokens=16, dominant=8, contextual=2))
    batch = adapter.collate(questions(4))
    rules = {place: RatioRule(0.6, 0.7) for place in adapter.drop_places}
    forwarding = Forwarding(Masks.ones(adapter.blocks), rules)
    with torch.no_grad():
        assert adapter.shares(batch, forwarding) == adapter.score(batch, forwarding).shares
    assert len(adapter.shares(batch, forwarding)) == len(rules)


def test_shares_take_no_more_of_the_model_than_the_last_place(adapter):
    batch = adapter.collate(questions(4))
    place = ("language", 2)
    assert place in adapter.drop_places
    layers = adapter.model.model.language_model.layers
    for layer in (layers[2], layers[3], adapter.model.lm_head):
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
    with torch.no_grad():
        result = adapter.shares(batch, Forwarding(rules={place: RatioRule(0.6, 0.7)}))
    assert list(result) == [place]
    assert 0 < result[place].vision_kept < result[place].vision
