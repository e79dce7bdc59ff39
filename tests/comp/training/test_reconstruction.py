"""Refitting output projections after a cut: against ridge regression, and its effect in a model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from comp.adapter import Forwarding
from comp.masks import Masks
from comp.training.reconstruction import RIDGE, Cut, InputProducts, fitted, reconstruct
from comp.utils.compute import Compute
from tests.comp.jobs import small_job


def products_of(rows):
    """Return ``sum x x^T`` with a one appended to each x."""
    with_one = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    return with_one.T @ with_one


def kept(size, *indices):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def refit(cut, products):
    cut.put(fitted(cut, products))


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def test_a_duplicate_input_takes_over_the_weight():
    """Without a ridge the weight of the duplicate would be added whole: 2 + 3; the ridge lowers it."""
    layer = linear([[2.0, 3.0]])
    rows = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    refit(Cut(layer, kept(2, 0, 1), kept(2, 0)), products_of(rows))
    assert layer.weight[0].tolist() == pytest.approx([2 + 3 * 5 / (5 + RIDGE * 5), 3])


def test_a_constant_input_moves_into_the_bias():
    layer = linear([[2.0, 3.0]], [1.0])
    rows = torch.tensor([[1.0, 4.0], [-1.0, 4.0]])
    refit(Cut(layer, kept(2, 0, 1), kept(2, 0)), products_of(rows))
    assert layer.weight[0].tolist() == pytest.approx([2, 3])
    assert layer.bias.item() == pytest.approx(1 + 3 * 4)


def test_inputs_that_are_always_zero_change_nothing():
    layer = linear([[2.0, 3.0]])
    refit(Cut(layer, kept(2, 0, 1), kept(2, 0)), products_of(torch.zeros(2, 2)))
    assert layer.weight[0].tolist() == [2, 3]


def test_a_restored_input_starts_from_zero():
    """The input was removed before, so the fit is to the outputs without it."""
    layer = linear([[2.0, 3.0, 7.0]])
    rows = torch.eye(3)
    refit(Cut(layer, kept(3, 0, 1), kept(3, 0, 2)), products_of(rows))
    assert layer.weight[0].tolist() == pytest.approx([2, 3, 0])


@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(1, 4), st.booleans())
@settings(deadline=None, max_examples=40)
def test_refit_equals_ridge_regression_of_the_old_outputs(seed, size, outputs, bias):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(20, size, generator=generator)
    before = torch.rand(size, generator=generator) < 0.8
    after = torch.rand(size, generator=generator) < 0.5
    after[0] = True
    layer = nn.Linear(size, outputs, bias=bias)
    weight = layer.weight.detach().clone().double().numpy()
    old_bias = layer.bias.detach().double().numpy() if bias else np.zeros(outputs)
    refit(Cut(layer, before, after), products_of(rows))

    # The same as an ordinary least-squares problem: rows for the data, rows for the ridge.
    inputs, columns = rows.double().numpy(), after.numpy()
    start = np.where(before.numpy(), weight, 0)
    missing = inputs @ start.T - inputs[:, columns] @ start[:, columns].T
    ridge = RIDGE * np.square(inputs).sum(0).mean()
    design = np.vstack([inputs[:, columns], np.sqrt(ridge) * np.eye(columns.sum())])
    if bias:
        ones = np.r_[np.ones(len(inputs)), np.zeros(columns.sum())]
        design = np.column_stack([design, ones])
    wanted = np.vstack([missing, np.zeros((columns.sum(), outputs))])
    change = np.linalg.lstsq(design, wanted, rcond=None)[0].T

    count = columns.sum()
    expected = start[:, columns] + change[:, :count]
    assert np.allclose(layer.weight.detach().numpy()[:, columns], expected, atol=1e-4)
    untouched = layer.weight.detach().numpy()[:, ~columns]
    assert np.array_equal(untouched, weight[:, ~columns].astype(np.float32))
    if bias:
        assert np.allclose(layer.bias.detach().numpy(), old_bias + change[:, count], atol=1e-4)


def test_only_present_tokens_count():
    products = InputProducts([(("language", 0), "heads")])
    mixed = torch.tensor([[[1.0], [5.0]], [[2.0], [7.0]]])
    products.heads(("language", 0), mixed, torch.tensor([[0.3, 0.0], [0.1, 0.0]]))
    products.heads(("language", 1), mixed, torch.ones(2, 2))
    assert {place: result.tolist() for place, result in products.of.items()} == {
        (("language", 0), "heads"): [[5.0, 3.0], [3.0, 2.0]]
    }


@pytest.mark.parametrize("family", ["llava", "clip", "blip"])
def test_a_refitted_layer_is_nearer_to_its_old_outputs(family, tmp_path):
    """Compare the outputs of the cut layers on the calibration batches, with and without refitting."""
    job = small_job(family, tmp_path / "a", rate=0.5)
    adapter, batches = job.adapter, job.data.calibration
    after = Masks.ones(adapter.blocks)
    key = next(block.key for block in adapter.blocks if block.part == "language")
    after.heads[key][0] = 0
    after.channels[key][::3] = 0
    sides = adapter.output_projections(key)
    old = [(side.weight.detach().clone(), side.bias) for side in sides]
    inputs = InputProducts([(key, "heads"), (key, "channels")])
    compute = Compute("cpu", "float32")
    with torch.no_grad():
        for batch in batches:
            adapter.score(batch, Forwarding(Masks.ones(adapter.blocks)), inputs)
    others = {
        name: parameter.detach().clone() for name, parameter in adapter.model.named_parameters()
    }

    reconstruct(adapter, compute, batches, Forwarding(Masks.ones(adapter.blocks)), after)

    for kind, side, (weight, bias), mask in zip(
        ("heads", "channels"), sides, old, (after.heads[key], after.channels[key]), strict=True
    ):
        columns = mask.repeat_interleave(weight.shape[1] // len(mask)).bool()
        products = inputs.of[key, kind]

        def error(new, shift=None, weight=weight, columns=columns, products=products):
            """``sum |W x - new x_S - shift|^2`` over the calibration tokens, out of the products."""
            far = torch.cat(
                [weight - torch.where(columns, new, 0.0), torch.zeros(len(weight), 1)], 1
            )
            if shift is not None:
                far[:, -1] = -shift
            return torch.einsum("oi,ij,oj->", far, products, far).item()

        now = side.weight.detach()
        shift = None if bias is None else side.bias.detach() - others[_name(adapter, side.bias)]
        assert error(now, shift) < 0.9 * error(weight)
    changed = {
        name
        for name, parameter in adapter.model.named_parameters()
        if not torch.equal(parameter, others[name])
    }
    touched = [side.weight for side in sides] + [
        side.bias for side in sides if side.bias is not None
    ]
    assert changed == {_name(adapter, parameter) for parameter in touched}


def _name(adapter, wanted):
    return next(name for name, result in adapter.model.named_parameters() if result is wanted)


@pytest.mark.parametrize("family", ["llava", "clip", "blip"])
def test_a_refit_is_undone_to_the_bit(family, tmp_path):
    job = small_job(family, tmp_path, rate=0.5)
    adapter = job.adapter
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    after = Masks.ones(adapter.blocks)
    for block in adapter.blocks:
        if block.key in after.channels:
            after.channels[block.key][::3] = 0
    forwarding = Forwarding(Masks.ones(adapter.blocks))
    compute = Compute("cpu", "float32")
    undo = reconstruct(adapter, compute, job.data.calibration, forwarding, after, undoable=True)
    changed = adapter.model.state_dict()
    assert any(not torch.equal(changed[name], tensor) for name, tensor in before.items())
    undo()
    for name, tensor in adapter.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("family", ["llava", "clip", "blip"])
def test_layers_refitted_in_parts_equal_layers_refitted_at_once(family, tmp_path, monkeypatch):
    """However few products fit into memory, later layers must not see earlier ones refitted."""

    def refitted(folder):
        job = small_job(family, folder, rate=0.5)
        adapter = job.adapter
        after = Masks.ones(adapter.blocks)
        for block in adapter.blocks:
            if block.key in after.channels:
                after.channels[block.key][::3] = 0
        forwarding = Forwarding(Masks.ones(adapter.blocks))
        reconstruct(adapter, Compute("cpu", "float32"), job.data.calibration, forwarding, after)
        return adapter.model.state_dict()

    together = refitted(tmp_path / "together")
    monkeypatch.setattr("comp.training.reconstruction.PRODUCTS", 1)
    one_by_one = refitted(tmp_path / "one-by-one")
    for name, tensor in together.items():
        assert torch.equal(tensor, one_by_one[name]), name
