import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.importance.tokens import received_attention
from comp.plan import keep_count
from comp.tokens.drop_rules import RaisedRule, RatioRule, ThresholdRule
from comp.tokens.state import ANSWER, TEXT, VISION, TokenState


def brute_force_ranks(importance, kind, alive, query, ratio_vision, ratio_text):
    """Eq. 1 with keep ratios, one row at a time in plain Python."""
    kept = np.zeros_like(alive)
    for row in range(len(kind)):
        for token_kind, ratio in ((VISION, ratio_vision), (TEXT, ratio_text)):
            candidates = [
                i for i in range(kind.shape[1]) if kind[row, i] == token_kind and alive[row, i]
            ]
            count = keep_count(len(candidates), ratio)
            score = {i: importance[row, i] + (2 if i == query[row] else 0) for i in candidates}
            for i in sorted(candidates, key=lambda i: (-score[i], i))[:count]:
                kept[row, i] = 1
        for i in range(kind.shape[1]):
            if kind[row, i] == ANSWER and alive[row, i]:
                kept[row, i] = 1
    return kept


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    vision=st.integers(0, 12),
    text=st.integers(1, 8),
    answers=st.integers(0, 3),
    ratios=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
)
def test_ratio_rule_equals_brute_force(seed, vision, text, answers, ratios):
    rng = np.random.default_rng(seed)
    kind = np.array([[VISION] * vision + [TEXT] * text + [ANSWER] * answers] * 3)
    alive = (rng.random(kind.shape) < 0.8).astype(np.float32)
    query = np.full(3, vision + text - 1)
    alive[:, query[0]] = 1
    importance = rng.random(kind.shape).astype(np.float32)
    ratio_vision, ratio_text = ratios[0] / 1000, ratios[1] / 1000
    result = RatioRule(ratio_vision, ratio_text).keep(
        torch.tensor(importance), torch.tensor(kind), torch.tensor(alive), torch.tensor(query)
    )
    expected = brute_force_ranks(importance, kind, alive, query, ratio_vision, ratio_text)
    np.testing.assert_array_equal(result.numpy(), expected)
    assert result[:, query[0]].all()


def test_strongest_head_counts_and_masked_heads_do_not():
    # Two heads, two tokens: head 0 looks at token 0, head 1 at token 1.
    scores = torch.tensor([[[4.0, 0.0], [0.0, 2.0]]])
    attention = torch.softmax(scores, -1)
    both = received_attention(scores, torch.ones(2), calibrated=True)
    assert torch.allclose(both, attention.amax(1))
    first_only = received_attention(scores, torch.tensor([1.0, 0.0]), calibrated=True)
    assert torch.allclose(first_only, attention[:, 0])


def test_without_cit_a_masked_head_changes_the_ranks():
    scores = torch.tensor([[[2.0, 1.0, -3.0], [0.0, 9.0, 0.0]]])
    mask = torch.tensor([1.0, 0.0])
    flat = received_attention(scores, mask, calibrated=False)
    # The masked head's flattened softmax gives 1/3 to every token, also to the one nobody needs.
    assert flat[0, 2] == pytest.approx(1 / 3)
    calibrated = received_attention(scores, mask, calibrated=True)
    assert calibrated[0, 2] < 0.01


def test_a_threshold_is_relative_to_the_mean_of_the_kind():
    kind = torch.tensor([[VISION] * 4 + [TEXT]])
    importance = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])  # relative: 0.4 0.8 1.2 1.6, 1
    rule = ThresholdRule(1.0, 0.0)
    kept = rule.keep(importance, kind, torch.ones(1, 5), torch.tensor([4]))
    assert kept[0].tolist() == [0, 0, 1, 1, 1]


def test_soft_ratios_decay_from_the_old_set_to_the_new():
    kind = torch.tensor([[VISION] * 4 + [TEXT]])
    importance = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])

    def kept(softness):
        rule = RatioRule(0.5, 1.0, (0.75, 1.0), softness)
        return rule.keep(importance, kind, torch.ones(1, 5), torch.tensor([4]))[0].tolist()

    assert kept(0.0) == [0, 0, 1, 1, 1]
    assert kept(0.25) == [0, 0.25, 1, 1, 1]
    assert kept(1.0) == [0, 1, 1, 1, 1]


def test_raising_one_kind_holds_the_other():
    kind = torch.tensor([[VISION] * 4 + [TEXT] * 4])
    importance = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4]])
    arguments = (importance, kind, torch.ones(1, 8), torch.tensor([7]))
    vision = RaisedRule(VISION, 1.4, RatioRule(1.0, 0.5)).keep(*arguments)
    assert vision[0].tolist() == [0, 0, 0, 1, 0, 0, 1, 1]
    text = RaisedRule(TEXT, 1.4, RatioRule(0.25, 1.0)).keep(*arguments)
    assert text[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


def test_the_highest_threshold_keeps_the_best_token_and_the_query():
    kind = torch.tensor([[VISION] * 3 + [TEXT] * 3])
    rule = ThresholdRule(1e3, 1e3)
    importance = torch.tensor([[0.1, 0.3, 0.2, 0.9, 0.1, 0.2]])
    kept = rule.keep(importance, kind, torch.ones(1, 6), torch.tensor([5]))
    assert kept[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_drop_keeps_order_positions_and_the_query():
    state = TokenState(
        states=torch.arange(10.0).reshape(2, 5, 1),
        position=torch.arange(5).expand(2, -1),
        kind=torch.tensor([[VISION] * 3 + [TEXT] * 2] * 2),
        alive=torch.ones(2, 5),
        index=torch.arange(5).expand(2, -1),
        query=torch.tensor([4, 4]),
    )
    kept = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.float32)
    dropped, taken = state.drop(kept)
    assert dropped.index[0].tolist() == [1, 3, 4]
    assert dropped.position[0].tolist() == [1, 3, 4]
    # The second row has one token fewer: filled up with a dead one.
    alive = dropped.alive[1] > 0
    assert dropped.index[1][alive].tolist() == [3, 4]
    assert [int(dropped.index[r, dropped.query[r]]) for r in range(2)] == [4, 4]
    assert torch.equal(taken, dropped.index)
