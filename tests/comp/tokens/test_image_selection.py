"""VisionZip's selection of image tokens: by hand, against a loop, and through the model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.plan import ImageSelection
from comp.tokens.image_selection import mean_key, select_tokens, tower_attention


def test_selection_by_hand():
    """Seven tokens: 1 and 5 dominant; of 0 2 3 4 6 every second is a target, two of them: 0 and 3."""
    states = torch.tensor([[[float(10**place)] for place in range(7)]])
    scores = torch.tensor([[0.1, 0.3, 0.05, 0.1, 0.1, 0.25, 0.1]])
    right, up = (1.0, 0.0), (0.0, 2.0)
    key = torch.tensor([[right, up, up, up, (3.0, 1.0), up, (1.0, 3.0)]])
    result = select_tokens(
        states, scores, key, ImageSelection(tower_tokens=7, dominant=2, contextual=2)
    )
    # 4 points to the right as 0 does; 2 and 6 point up as 3 does.
    expected = [10.0, 1e5, (1 + 1e4) / 2, (1e2 + 1e3 + 1e6) / 3]
    assert result.states[0, :, 0].tolist() == pytest.approx(expected)
    assert result.places.tolist() == [[1, 5, 0, 3]]


@pytest.mark.parametrize(
    ("count", "dominant", "contextual", "places"),
    [
        (576, 54, 10, [0, 52, 104, 156, 208, 260, 312, 364, 416, 468]),
        (576, 162, 30, list(range(0, 390, 13))),
        (16, 10, 4, [0, 1, 2, 3]),
        (16, 16, 0, []),
        (16, 12, 4, [0, 1, 2, 3]),
    ],
)
def test_targets_are_strided_over_what_is_not_dominant(count, dominant, contextual, places):
    """Targets equal ``arange(0, rest, max(1, rest // contextual))[:contextual]`` of the original."""
    selection = ImageSelection(tower_tokens=count, dominant=dominant, contextual=contextual)
    assert selection.target_places == places


def brute_force(states, scores, key, dominant, contextual):
    """One image, written out."""
    order = sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place))
    strong = sorted(order[:dominant])
    rest = [place for place in range(len(scores)) if place not in strong]
    rows = [states[place] for place in strong]
    if not contextual:
        return torch.stack(rows), strong
    targets = rest[:: len(rest) // contextual][:contextual]
    groups = {target: [states[target]] for target in targets}
    for place in rest:
        if place in targets:
            continue
        near = [
            float(torch.cosine_similarity(key[place], key[target], dim=0)) for target in targets
        ]
        groups[targets[near.index(max(near))]].append(states[place])
    rows += [torch.stack(groups[target]).mean(0) for target in targets]
    return torch.stack(rows), strong + targets


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 20), st.data())
def test_selection_equals_the_loop(seed, count, data):
    dominant = data.draw(st.integers(1, count))
    contextual = data.draw(st.integers(0, count - dominant))
    generator = torch.Generator().manual_seed(seed)
    states, key = (torch.randn(3, count, width, generator=generator) for width in (4, 5))
    scores = torch.rand(3, count, generator=generator)
    selection = ImageSelection(tower_tokens=count, dominant=dominant, contextual=contextual)
    result = select_tokens(states, scores, key, selection)
    for image in range(3):
        rows, places = brute_force(states[image], scores[image], key[image], dominant, contextual)
        assert result.places[image].tolist() == places
        assert torch.allclose(result.states[image], rows, atol=1e-5)


def test_of_equal_scores_the_first_is_dominant():
    states = torch.arange(5.0)[None, :, None]
    result = select_tokens(
        states, torch.ones(1, 5), states, ImageSelection(tower_tokens=5, dominant=2, contextual=1)
    )
    assert result.places.tolist() == [[0, 1, 2]]


def test_masked_heads_do_not_affect_the_selection():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(2))
    mask, kept = torch.tensor([1.0, 0.0, 1.0, 0.0]), [0, 2]
    ones = torch.ones(2)
    scores = tower_attention(query, key, mask, 0.5)
    assert torch.allclose(scores, tower_attention(query[:, kept], key[:, kept], ones, 0.5))
    assert torch.allclose(scores.sum(1), torch.ones(2))
    by_hand = torch.softmax(query[0, 0, 0] @ key[0, 0].T * 0.5, dim=-1)
    by_hand = by_hand + torch.softmax(query[0, 2, 0] @ key[0, 2].T * 0.5, dim=-1)
    assert torch.allclose(scores[0], by_hand / 2)
    assert torch.allclose(mean_key(key, mask), 2 * key[:, kept].mean(1), atol=1e-6)


def test_without_a_class_token_every_token_asks():
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(2))
    scores = tower_attention(query, key, torch.ones(3), 0.5, class_token=False)
    expected = torch.zeros(2, 5)
    for image in range(2):
        for head in range(3):
            for asking in range(5):
                logits = key[image, head] @ query[image, head, asking] * 0.5
                expected[image] += torch.softmax(logits, -1) / 15
    assert torch.allclose(scores, expected, atol=1e-6)
