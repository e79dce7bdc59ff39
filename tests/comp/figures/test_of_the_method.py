"""Figures of ``inspect --figures``: by hand, by brute force, and against transformers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.figures.mode_shares import FINALISING, mode_shares
from comp.figures.rank_stability import (
    DRAWS,
    PROGRESS,
    Case,
    masks_of_run,
    measure_stability,
    random_masks,
    rank_correlation,
    ranking_blocks,
)
from comp.figures.spread import Spread
from comp.figures.token_overlap import (
    OverlapObserver,
    measure_overlaps,
    overlap_of,
    ranked_tokens,
    top_tokens,
)
from comp.importance.parameters import ParameterImportance, norm_weights, token_contributions
from comp.plan import BlockPlan
from tests.comp.small import questions, small_adapter
from tests.comp.small_blip import TASKS, examples_of, random_blip
from tests.comp.small_blip import random_plan as random_blip_plan
from tests.comp.small_clip import HEADS, random_clip, random_plan


def passed():
    """Nothing to tell."""


def stage(number, mode, macs, dense=1000):
    return {"stage": number, "mode": mode, "macs": macs, "rate": 1 - macs / dense}


def plan_leaving(macs, dense=1000):
    return random_plan().model_copy(update={"macs_dense": dense, "macs": macs})


def test_shares_by_hand():
    stages = [
        stage(1, "vision_tokens", 900),
        stage(2, "language_parameters", 750),
        stage(3, "vision_tokens", 480),
    ]
    tokens, parameters, finalising = mode_shares(stages, plan_leaving(500))
    assert (tokens.mode, tokens.stages, tokens.macs) == ("vision_tokens", ((1, 100), (3, 270)), 370)
    assert tokens.share == pytest.approx(0.74)
    assert (parameters.macs, parameters.share) == (150, pytest.approx(0.3))
    assert (finalising.mode, finalising.macs) == (FINALISING, -20)  # it gave 20 back
    assert finalising.share == pytest.approx(-0.04)


def test_shares_of_a_latency_run_are_shares_of_flops():
    """Its rates are of milliseconds, which distinguish its stages from another run's."""
    timed = {"rate_of": "latency", "milliseconds_dense": 8.0, "milliseconds": 5.0}
    plan = plan_leaving(500).model_copy(update=timed)
    stages = [
        {"stage": 1, "mode": "vision_tokens", "macs": 700, "milliseconds": 6.0, "rate": 0.25},
        {
            "stage": 2,
            "mode": "language_parameters",
            "macs": 500,
            "milliseconds": 5.0,
            "rate": 0.375,
        },
    ]
    assert [share.macs for share in mode_shares(stages, plan)] == [300, 200, 0]
    with pytest.raises(CompExportError, match="of different runs"):
        mode_shares([stages[0] | {"milliseconds": 7.0}, stages[1]], plan)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 999)), max_size=9), st.data())
def test_shares_add_up_to_one(lines, data):
    final = data.draw(st.integers(1, 999))
    stages = [stage(number, *line) for number, line in enumerate(lines, 1)]
    shares = mode_shares(stages, plan_leaving(final))
    assert sum(share.share for share in shares) == pytest.approx(1)
    assert sum(share.macs for share in shares) == 1000 - final
    assert len({share.mode for share in shares}) == len(shares)


def test_stages_of_another_run_are_refused():
    with pytest.raises(
        CompExportError, match=r"stage 1 of stages\.jsonl leaves 900 MACs at rate 0\.5"
    ):
        mode_shares([stage(1, "vision_tokens", 900, dense=1800)], plan_leaving(500))
    with pytest.raises(CompExportError, match="removes no FLOPs"):
        mode_shares([], plan_leaving(1000))


def test_spread_by_hand():
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(math.sqrt(2)), 2)
    assert Spread.of([0.5]) == Spread(0.5, 0.0, 1)


def test_contributions_by_hand():
    # Channel norms are 5 and 4; token 0 adds 9/5 to the first, token 1 16/5 to it and 4 to the second.
    activations = torch.tensor([[[3.0, 0.0], [4.0, 4.0], [9.0, 9.0]]])
    weights = norm_weights(torch.tensor([[0.1, 5.0, 0.0]]), token_weighted=False, has_cls=False)
    result = token_contributions(activations, weights, torch.tensor([10.0, 1.0]))
    assert result.tolist() == [pytest.approx([18.0, 32.0 + 4.0, 0.0])]


@torch.no_grad()
@pytest.mark.parametrize("weighted", [False, True])
def test_contributions_sum_to_the_scores_of_the_search(weighted):
    adapter = random_clip()
    scores = ParameterImportance({"vision", "language"}, weighted, adapter.has_cls)
    totals = {}

    class Sums:
        def heads(self, key, mixed, importance):
            scores.heads(key, mixed, importance)
            self.add("heads", key, mixed, importance)

        def channels(self, key, hidden, importance):
            scores.channels(key, hidden, importance)
            self.add("channels", key, hidden, importance)

        def add(self, what, key, activations, importance):
            weights = norm_weights(importance, weighted, adapter.has_cls(key))
            magnitude = adapter.output_magnitude(key)[what == "channels"]
            totals[what, key] = token_contributions(activations, weights, magnitude).sum(1).mean()

    adapter.score(adapter.collate(examples_of("retrieval", 3)), Forwarding(), Sums())
    result = scores.scores(adapter)
    for key, channels in result.channels.items():
        assert totals["channels", key] == pytest.approx(float(channels.sum()), rel=1e-4)
        size = len(adapter.output_magnitude(key)[0]) // HEADS  # a head's score is a mean over these
        assert totals["heads", key] == pytest.approx(
            float(result.heads[key].sum()) * size, rel=1e-4
        )


def test_top_tokens_and_overlap_by_hand():
    values = torch.tensor([9.0, 1.0, 5.0, 5.0, 7.0])
    candidates = torch.tensor([1, 2, 3, 4])
    assert top_tokens(values, candidates, 2).tolist() == [4, 2]  # the first of equal ones
    assert overlap_of(torch.tensor([4, 2]), torch.tensor([2, 3])) == 0.5
    assert overlap_of(torch.tensor([1, 3, 4]), torch.tensor([4, 3, 1])) == 1.0
    assert overlap_of(torch.tensor([1]), torch.tensor([2])) == 0.0


def test_padding_and_cls_are_not_ranked():
    importance = torch.tensor([0.5, 0.1, 0.0, 0.3])
    assert ranked_tokens(importance, has_cls=False).tolist() == [0, 1, 3]
    assert ranked_tokens(importance, has_cls=True).tolist() == [1, 3]
    assert importance.tolist() == pytest.approx([0.5, 0.1, 0.0, 0.3])


def test_overlap_of_a_layer_by_hand():
    key = ("language", 0)
    magnitude = (torch.tensor([1.0]), torch.tensor([2.0]))
    observer = OverlapObserver(lambda key: magnitude, lambda key: False)
    # Five tokens are present, so two decide. Squares 100, 81, 4, 1, 1: tokens 0 and 1 without CIP. Weighed by
    # importance 0.01, 1, 5, 8, 2: 1, 81, 20, 8, 2, so 1 and 2. Important are 3 and 2.
    states = torch.tensor([[[10.0], [9.0], [2.0], [1.0], [1.0], [99.0]]])
    importance = torch.tensor([[0.01, 1.0, 5.0, 8.0, 2.0, 0.0]])
    observer.heads(key, states, importance)
    observer.channels(key, torch.ones(1, 3, 1), torch.ones(1, 3))  # too few to have a quarter
    (result,) = observer.overlaps()
    assert (result.key, result.sublayer) == (key, "heads")
    assert result.without_cip == Spread(0.0, 0.0, 1)
    assert result.with_cip == Spread(0.5, 0.0, 1)
    assert result.chance == pytest.approx(2 / 5)
    for _ in range(2):  # now most rows are short
        observer.heads(key, torch.ones(1, 3, 1), torch.ones(1, 3))
    assert observer.overlaps() == ()


def test_rank_correlation_by_hand():
    ascending = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(ascending, ascending**3) == pytest.approx(1)
    assert rank_correlation(ascending, -ascending) == pytest.approx(-1)
    # 1 - 6 * (1 + 1) / (4 * 15)
    assert rank_correlation(ascending, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    # The tied middle shares rank 1.5: covariance 4.5, squared deviations 5 and 4.5.
    tied = torch.tensor([0.0, 7.0, 7.0, 9.0])
    assert rank_correlation(ascending, tied) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert rank_correlation(ascending, torch.ones(4)) == 0.0  # ranks nothing


@given(st.permutations(range(12)))
def test_rank_correlation_of_permutations_is_spearmans_formula(order):
    distance = sum((place - value) ** 2 for place, value in enumerate(order))
    result = rank_correlation(torch.arange(12), torch.tensor(order))
    assert result == pytest.approx(1 - 6 * distance / (12 * (144 - 1)), abs=1e-9)


def test_random_masks_keep_the_same_number_of_heads():
    adapter = random_clip()
    masks = masks_of_run(adapter, random_plan(3))
    drawn = [random_masks(masks, seed) for seed in range(4)]
    for key, mask in masks.heads.items():
        assert {float(each.heads[key].sum()) for each in drawn} == {float(mask.sum())}
    assert len({tuple(torch.cat(list(each.heads.values())).tolist()) for each in drawn}) > 1
    again = random_masks(masks, 2)
    assert all(torch.equal(again.heads[key], drawn[2].heads[key]) for key in masks.heads)


def test_a_run_that_removes_no_heads_is_refused():
    plan = random_plan()
    blocks = tuple(
        block.model_copy(update={"kept_key_value_heads": tuple(range(HEADS))})
        for block in plan.blocks
    )
    with pytest.raises(CompExportError, match=r"removes no attention heads \(method test\)"):
        masks_of_run(random_clip(), plan.model_copy(update={"blocks": blocks}))


def plan_with_heads(kept):
    """Vision block 0 keeps these heads, all others are whole."""
    plan = random_plan()
    blocks = []
    for block in plan.blocks:
        heads = kept if (block.part, block.index) == ("vision", 0) else tuple(range(HEADS))
        blocks.append(block.model_copy(update={"kept_key_value_heads": heads}))
    return plan.model_copy(update={"blocks": tuple(blocks)})


@torch.no_grad()
def test_stability_of_the_first_block_equals_transformers_attention():
    adapter, plan, kept = random_clip(), plan_with_heads((1, 3)), [1, 3]
    batches = [adapter.collate([example]) for example in examples_of("retrieval", 3)]
    result = measure_stability(adapter, plan, batches, 0, passed)
    adapter.model.set_attn_implementation("eager")
    expected = {True: [], False: []}
    for batch in batches:
        output = adapter.model.vision_model(batch.pixel_values, output_attentions=True)
        attention = output.attentions[0][0]  # [H, N, N]
        flat = attention.clone()
        flat[[0, 2]] = 1 / attention.shape[-1]  # logits of a masked head are all 0
        for calibrated, votes in ((True, attention[kept]), (False, flat)):
            ranks = [
                np.argsort(np.argsort(v.amax(0).mean(0)[1:].numpy())) for v in (attention, votes)
            ]
            expected[calibrated].append(float(np.corrcoef(*ranks)[0, 1]))
    for calibrated, values in expected.items():
        for alone in (True, False):
            case = Case("run", 1.0, calibrated, alone)
            (one,) = [s for s in result if s.key == ("vision", 0) and s.case == case]
            assert one.correlation.mean == pytest.approx(np.mean(values), abs=2e-3)
            assert one.correlation.count == 3
    # No other head is masked: later ranks move by the states alone, and texts not at all.
    for each in result:
        if each.key[0] == "language":
            assert each.correlation.mean == pytest.approx(1)
            assert not each.case.alone
    later = {s.case.calibrated: s.correlation for s in result if s.key == ("vision", 1)}
    assert later[True] == later[False]
    assert later[True].mean < 1


def test_masking_less_changes_ranks_less():
    adapter, plan = random_clip(), random_plan(3)
    batches = [adapter.collate([example]) for example in examples_of("retrieval", 2)]
    calls = []
    result = measure_stability(adapter, plan, batches, 0, lambda: calls.append(1))
    assert len(calls) == 2
    means = [
        np.mean([s.correlation.mean for s in result if s.case == Case("run", progress, True)])
        for progress in PROGRESS
    ]
    assert 1 > means[0] > means[-1]
    random = next(s for s in result if s.case.chosen == "random")
    assert random.correlation.count == 2 * DRAWS


def test_blocks_before_a_drop_rank_tokens():
    assert ranking_blocks(random_clip()) == {
        (part, n) for part in ("vision", "language") for n in (0, 1)
    }
    assert ranking_blocks(small_adapter()) == {("language", n) for n in range(3)}
    caption = random_blip("caption")
    assert {part for part, _ in ranking_blocks(caption)} == {"vision"}  # a decoder drops nothing


@pytest.mark.parametrize("task", TASKS)
def test_every_blip_has_figures(task):
    adapter = random_blip(task)
    batches = [adapter.collate([example]) for example in examples_of(task, 2)]
    overlaps = measure_overlaps(adapter, batches, passed)
    assert {("vision", "heads"), ("vision", "channels"), ("cross", "heads")} <= {
        (each.key[0], each.sublayer) for each in overlaps
    }
    for each in overlaps:
        assert 0 <= each.without_cip.mean <= 1
        assert 0 <= each.with_cip.mean <= 1
        assert 0.25 <= each.chance <= 0.5
    result = measure_stability(adapter, random_blip_plan(adapter), batches, 0, passed)
    assert {each.key for each in result} == ranking_blocks(adapter)
    assert all(-1 <= each.correlation.mean <= 1 + 1e-9 for each in result)


def test_a_llava_with_grouped_heads_has_figures():
    adapter = small_adapter()
    batches = [adapter.collate([question]) for question in questions(2)]
    overlaps = measure_overlaps(adapter, batches, passed)
    expected = {(block.key, what) for block in adapter.blocks for what in ("heads", "channels")}
    assert {(each.key, each.sublayer) for each in overlaps} == expected
    blocks = tuple(
        BlockPlan(
            part=block.part,
            index=block.index,
            num_attention_heads=block.num_attention_heads,
            num_key_value_heads=block.num_key_value_heads,
            intermediate_size=block.intermediate_size,
            kept_key_value_heads=(0,),
            kept_channels=tuple(range(block.intermediate_size)),
        )
        for block in adapter.blocks
    )
    plan = random_plan().model_copy(update={"family": "llava", "blocks": blocks, "drops": ()})
    result = measure_stability(adapter, plan, batches, 0, passed)
    assert {each.key for each in result} == ranking_blocks(adapter)
    assert {each.key for each in result if each.case.alone} == {
        (part, after - 1) for part, after in adapter.drop_places
    }
