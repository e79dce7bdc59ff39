"""Rankings and merges of encoders' tokens: small cases by hand, and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.importance.encoder_rankings import (
    AttentionRecord,
    importance_of,
    informativity,
    similarity,
    stretched,
    three_scores,
)
from comp.tokens.drop_rules import RatioRule
from comp.tokens.merging import FLOOR, Dropped, merge_into_one, merge_similar
from comp.tokens.state import VISION, TokenState


def state_of(states, alive, query, size=None):
    places = torch.arange(states.shape[1]).expand(states.shape[:2])
    kind = torch.full(states.shape[:2], VISION)
    return TokenState(states, places, kind, alive, places, query, size)


def looked_at(keys, attention, head_mask=(1.0,), query=0, mixed=None, alive=None):
    """One row; ``keys [N, hd]`` of every head, ``attention [H, N]`` of every query, its rows alike."""
    keys, attention = torch.tensor(keys), torch.tensor(attention)
    heads, count = attention.shape
    scores = attention.clamp(min=1e-30).log()[None, :, None].expand(1, heads, count, count)
    mixed = torch.ones(count, heads, 1) if mixed is None else torch.tensor(mixed)
    alive = torch.ones(1, count) if alive is None else torch.tensor([alive])
    entering = state_of(torch.zeros(1, count, 1), alive, torch.tensor([query]))
    key = keys[None, None].expand(1, heads, count, keys.shape[-1])
    return AttentionRecord(scores, key, mixed[None], torch.tensor(head_mask), entering, key)


def test_informativity_by_hand():
    """[CLS] and three tokens: two in the same direction, one in another."""
    looked = looked_at([[9.0, 9], [1, 0], [2, 0], [0, 1]], [[0.1, 0.5, 0.3, 0.1]])
    # Stretched attention 1, 0.5, 0; redundancy 1, 1, 0: (a − r + 1) / 3.
    result = informativity(looked)
    torch.testing.assert_close(result, torch.tensor([[0.0, 1 / 3, 0.5 / 3, 1 / 3]]))
    assert torch.equal(importance_of("informativity", looked, calibrated=True), result)


def test_masked_heads_contribute_nothing():
    """A masked head with the opposite attention changes nothing."""
    keys = [[1.0, 0], [1, 1], [0, 1], [1, -1]]
    both = looked_at(keys, [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], (1.0, 0.0))
    alone = looked_at(keys, [[0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(informativity(both), informativity(alone))
    torch.testing.assert_close(similarity(both), similarity(alone))
    responses = torch.rand(1, 4, 5)
    torch.testing.assert_close(three_scores(both, responses), three_scores(alone, responses))


def test_absent_tokens_contribute_nothing():
    present = looked_at([[1.0, 0], [1, 1], [0, 1]], [[0.2, 0.3, 0.5]])
    padded = looked_at(
        [[1.0, 0], [1, 1], [0, 1], [0, 1]], [[0.2, 0.3, 0.5, 0.0]], alive=[1.0, 1, 1, 0]
    )
    result = informativity(padded)
    torch.testing.assert_close(result[:, :3], informativity(present))
    assert result[0, 3] == 0


def test_three_scores_by_hand():
    """Two heads, [CLS] and three tokens."""
    attention = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.6, 0.2, 0.1]]
    mixed = [[[1.0], [1.0]], [[3.0], [1.0]], [[0.0], [2.0]], [[1.0], [1.0]]]
    looked = looked_at([[1.0, 0]] * 4, attention, (1.0, 1.0), mixed=mixed)
    responses = torch.tensor([[[9.0, 9.0], [0.1, 0.3], [0.5, 0.2], [0.1, 0.1]]])
    # Received: the strongest head, 0.6, 0.3, 0.4. Response 0.3, 0.5, 0.1. Attention of [CLS], heads
    # weighted by the token's own lengths: 0.75·0.2 + 0.25·0.6 = 0.3; 0.2; 0.5·0.4 + 0.5·0.1 = 0.25.
    wanted = [(1 + 0.5 + 1) / 3, (0 + 1 + 0) / 3, (1 / 3 + 0 + 0.5) / 3]
    torch.testing.assert_close(three_scores(looked, responses), torch.tensor([[0.0, *wanted]]))


def test_scores_are_scaled_to_the_unit_interval():
    scores, others = (
        torch.tensor([[7.0, 2, 4, 3, 9]]),
        torch.tensor([[False, True, True, True, False]]),
    )
    assert stretched(scores, others).tolist() == [[0, 0, 1, 0.5, 0]]
    equal = stretched(torch.full((1, 3), 0.4), torch.tensor([[False, True, True]]))
    assert equal.tolist() == [[0, 0, 0]]


def dropped_of(states, importance, ratio, query=0, alive=None, size=None):
    """One row of tokens ``[N, d]``, dropped by a rule."""
    states = torch.tensor(states)[None]
    alive = torch.ones(states.shape[:2]) if alive is None else torch.tensor([alive])
    entering = state_of(states, alive, torch.tensor([query]), size)
    kept = RatioRule(ratio, ratio).keep(importance, entering.kind, entering.alive, entering.query)
    left, taken = entering.drop(kept)
    return Dropped(entering, left, taken)


def test_similar_tokens_merge_by_hand():
    """Tokens 2 and 4 are dropped: 2 is most like [CLS], which merges none, then like 1; 4 is like 3."""
    importance = torch.tensor([[0.0, 0.9, 0.1, 0.8, 0.2]])
    size = torch.tensor([[1.0, 3, 1, 1, 2]])
    states = [[10.0], [4.0], [8.0], [1.0], [4.0]]
    alike = torch.eye(5)
    for one, other, cosine in ((2, 0, 0.9), (2, 1, 0.5), (2, 3, 0.1), (4, 3, 0.7), (4, 1, 0.6)):
        alike[one, other] = alike[other, one] = cosine
    dropped = dropped_of(states, importance, 0.6, size=size)
    left = merge_similar(dropped, alike[None])
    assert left.index.tolist() == [[0, 1, 3]]
    torch.testing.assert_close(left.states, torch.tensor([[[10.0], [5.0], [3.0]]]))
    assert left.size is not None
    assert left.size.tolist() == [[1, 4, 3]]


def test_tokens_merge_into_one_by_hand():
    """Tokens 2 and 4 are dropped; the weakest kept one, 3, is their mean, weighted by scores."""
    importance = torch.tensor([[0.0, 0.9, 0.1, 0.6, 0.3]])
    left = merge_into_one(dropped_of([[10.0], [4], [8], [1], [4]], importance, 0.6), importance)
    assert left.index.tolist() == [[0, 1, 3]]
    mean = (0.1 * 8 + 0.6 * 1 + 0.3 * 4) / 1.0
    torch.testing.assert_close(
        left.states, torch.tensor([[[10.0], [4.0], [mean]]]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("merge", ["similar", "one"])
def test_the_kept_query_token_merges_nothing(merge):
    """It is unchanged if it is the only kept token."""
    importance = torch.tensor([[0.4, 0.0, 0.2]])
    dropped = dropped_of([[5.0], [2], [3]], importance, 0.1, query=1)
    assert dropped.left.index.tolist() == [[1]]
    left = merge_similar(dropped, torch.ones(1, 3, 3))
    if merge == "one":
        left = merge_into_one(dropped, importance)
    assert left.states.tolist() == [[[2.0]]]


def loops(states, size, alive, kept, query, importance, alike, merge):
    """One row in plain Python: states and sizes of the kept tokens."""
    present_tokens = [i for i, present in enumerate(alive) if present]
    stay = [i for i in present_tokens if kept[i]]
    takers = [i for i in stay if i != query]
    groups = {i: [i] for i in stay}
    if takers:
        weakest = max(takers, key=lambda i: (-importance[i], i))
        for i in present_tokens:
            if not kept[i]:
                groups[
                    max(takers, key=lambda j: alike[i][j]) if merge == "similar" else weakest
                ].append(i)
    result = []
    for i in stay:
        group = groups[i]
        score = [size[j] if merge == "similar" else importance[j] + FLOOR for j in group]
        weights = [each / sum(score) for each in score]
        result.append(
            (
                [
                    math.fsum(w * states[j][c] for w, j in zip(weights, group, strict=True))
                    for c in (0, 1)
                ],
                sum(size[j] for j in group),
            )
        )
    return result


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9),
    st.sampled_from([0.1, 0.4, 0.7, 1.0]),
    st.integers(0, 10_000),
    st.sampled_from(["similar", "one"]),
)
def test_merges_equal_the_loops(count, ratio, seed, merge):
    """Two rows, the second padded."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, count, 2, generator=generator)
    alive = torch.ones(2, count)
    padding = int(torch.randint(0, count, (1,), generator=generator))
    alive[1, count - padding :] = 0
    last = alive.sum(1).long() - 1
    size = torch.randint(1, 5, (2, count), generator=generator).float()
    importance = torch.rand(2, count, generator=generator)
    alike = torch.rand(2, count, count, generator=generator)
    alike = (alike + alike.transpose(1, 2)) / 2
    entering = state_of(states, alive, last, size)
    kept = RatioRule(ratio, ratio).keep(importance, entering.kind, alive, last)
    left, taken = entering.drop(kept)
    dropped = Dropped(entering, left, taken)
    merged = (
        merge_similar(dropped, alike) if merge == "similar" else merge_into_one(dropped, importance)
    )
    assert torch.equal(merged.index, left.index)
    for row in range(2):
        facts = (states, size, alive, kept, last, importance, alike)
        expected = loops(*(fact[row].tolist() for fact in facts), merge)
        there = merged.alive[row] > 0
        assert int(there.sum()) == len(expected)
        wanted = torch.tensor([state for state, _ in expected])
        torch.testing.assert_close(merged.states[row][there], wanted, atol=1e-5, rtol=1e-5)
        if merge == "similar":
            assert merged.size is not None
            assert merged.size[row][there].tolist() == [total for _, total in expected]
