import math

import pytest
import torch

from comp.importance.parameters import (
    ParameterImportance,
    Scales,
    Scores,
    cheapest_units,
    token_weights,
)
from comp.masks import BlockShape, Masks


def test_weights_without_cls_sum_to_one():
    weights = token_weights(torch.tensor([[1.0, 3.0]]), has_cls=False)
    assert weights.tolist() == [[0.25, 0.75]]


def test_cls_weighs_one_and_the_others_sum_to_one():
    weights = token_weights(torch.tensor([[9.0, 1.0, 3.0]]), has_cls=True)
    assert weights.tolist() == [[1.0, 0.25, 0.75]]


class _Outputs:
    """Stands for an adapter: two heads of one channel and three FFN channels."""

    blocks = (BlockShape("language", 0, 2, 2, 2, 1, 3, gated=True),)

    def output_magnitude(self, key):
        return torch.tensor([2.0, 0.5]), torch.tensor([1.0, 2.0, 3.0])


def test_eq4_by_hand_and_as_a_running_mean():
    importance = ParameterImportance({"language"})
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])  # two tokens, two channels
    importance.heads(("language", 0), tokens, torch.tensor([[1.0, 3.0]]))
    importance.heads(("language", 0), 2 * tokens, torch.tensor([[1.0, 3.0]]))
    hidden = torch.tensor([[[1.0, 2.0, 2.0], [1.0, 0.0, 2.0]]])
    importance.channels(("language", 0), hidden, torch.tensor([[1.0, 1.0]]))
    scores = importance.scores(_Outputs())
    # head 0: sqrt(0.25 * 9) = 1.5, twice that in the second batch: mean 2.25, times |W| 2
    assert scores.heads["language", 0].tolist() == pytest.approx([4.5, math.sqrt(12) * 1.5 * 0.5])
    expected = [1.0, 2 * math.sqrt(2), 3 * 2.0]
    assert scores.channels["language", 0].tolist() == pytest.approx(expected)


def test_without_cip_every_token_counts_the_same():
    importance = ParameterImportance({"language"}, token_weighted=False)
    tokens = torch.tensor([[[3.0, 0.0], [4.0, 4.0], [9.0, 9.0]]])
    # The last token does not count (importance 0: an answer or padding).
    importance.heads(("language", 0), tokens, torch.tensor([[0.1, 5.0, 0.0]]))
    assert importance.norms()[0]["language", 0].tolist() == [5.0, 4.0]


def test_scores_keep_the_scale_of_the_whole_layer():
    key = ("language", 0)
    whole = Scores({key: torch.tensor([1.0, 3.0])}, {key: torch.tensor([5.0, 1.0, 3.0, 3.0])})
    scales = whole.scales()
    assert (scales.heads[key], scales.channels[key]) == ((2.0, 1.0), (3.0, pytest.approx(2**0.5)))
    masks = Masks({key: torch.ones(2)}, {key: torch.tensor([0.0, 1.0, 1.0, 1.0])})
    later = Scores({key: torch.tensor([2.0, 4.0])}, {key: torch.tensor([0.0, 2.0, 3.0, 4.0])})
    standard = later.standardised(masks, scales.and_new(later.scales()))
    assert standard.heads[key].tolist() == [0.0, 2.0]
    assert standard.channels[key].tolist() == pytest.approx([math.inf, -(0.5**0.5), 0.0, 0.5**0.5])
    # A layer that was not scaled before gets a scale of its own.
    other = Scales({("language", 1): (0.0, 1.0)})
    assert other.and_new(scales).heads == {("language", 1): (0.0, 1.0), key: (2.0, 1.0)}


def test_equal_scores_are_zeros():
    key = ("language", 0)
    same = Scores({key: torch.full((3,), 0.5)}, {})
    assert same.standardised(Masks({key: torch.ones(3)}, {}), same.scales()).heads[
        key
    ].tolist() == [0, 0, 0]


def test_one_order_over_all_layers_leaves_a_floor_in_each():
    blocks = tuple(BlockShape("language", i, 4, 2, 2, 2, 4, gated=True) for i in range(2))
    heads = {b.key: torch.tensor([1.0, 2.0]) for b in blocks}
    channels = {b.key: torch.tensor([4.0, 1.0, 2.0, 3.0]) for b in blocks}
    scores = Scores(heads, channels)
    units = cheapest_units(scores, scores.scales(), Masks.ones(blocks), blocks, min_channels=2)
    assert [unit[0] for unit in units] == sorted(unit[0] for unit in units)
    cut = [(kind, key[1], index) for _, kind, key, index in units]
    assert sorted(cut) == sorted(
        [("heads", 0, 0), ("heads", 1, 0)]
        + [("channels", layer, index) for layer in range(2) for index in (1, 2)]
    )


def test_a_formula_may_work_in_place():
    def doubled(layer):
        return layer.norm.mul_(2) * layer.magnitude.mul_(3)

    importance = ParameterImportance({"language"}, formula=doubled)
    ones = torch.ones(1, 1, 1)
    importance.heads(("language", 0), torch.ones(1, 1, 2), ones[0])
    importance.channels(("language", 0), torch.ones(1, 1, 3), ones[0])
    first, second = importance.scores(_Outputs()), importance.scores(_Outputs())
    assert first.channels["language", 0].tolist() == [6.0, 12.0, 18.0]
    assert second.channels["language", 0].tolist() == [6.0, 12.0, 18.0]
    assert importance.norms()[1]["language", 0].tolist() == [1.0, 1.0, 1.0]
