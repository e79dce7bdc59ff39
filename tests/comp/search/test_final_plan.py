"""Final plans from masks: rounded widths keep the channels with the best scores."""

import pytest
import torch

from comp.importance.parameters import Scores
from comp.masks import Masks
from comp.plan import Workload
from comp.search.final_plan import SearchResult, final_plan
from tests.comp.small_clip import random_clip


@pytest.mark.parametrize(("kept", "align"), [(20, 16), (28, 16), (30, 8)])
def test_rounding_follows_the_scores(kept, align):
    """From 20 down to 16 and from 28 up to 32: the worst kept are cut, the best cut are kept."""
    adapter = random_clip()
    torch.manual_seed(0)
    masks = Masks.ones(adapter.blocks)
    scores = Scores(
        {block.key: torch.rand(block.num_key_value_heads) for block in adapter.blocks},
        {block.key: torch.rand(block.intermediate_size) for block in adapter.blocks},
    )
    for block in adapter.blocks:
        masks.channels[block.key] = torch.zeros(block.intermediate_size)
        masks.channels[block.key][torch.randperm(block.intermediate_size)[:kept]] = 1
    workload = Workload(image_tokens=145, text_tokens=12)
    rate = 1 - adapter.macs(masks.counts(), {}, workload) / adapter.macs(
        Masks.ones(adapter.blocks).counts(), {}, workload
    )
    plan = final_plan(adapter, SearchResult(masks, scores, align), workload, rate, "m", "test")
    assert plan.rate == pytest.approx(rate, abs=0.01)
    for block in plan.blocks:
        values = scores.channels[block.part, block.index]
        mask = masks.channels[block.part, block.index]
        order = sorted(range(len(values)), key=lambda i: (-mask[i], -values[i]))
        assert set(block.kept_channels) == set(order[: len(block.kept_channels)])
