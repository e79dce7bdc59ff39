"""A gradient step in every precision."""

import pytest
import torch

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.training.trainer import StepOptions, Trainer
from comp.utils.compute import Compute
from tests.comp.small import questions, small_adapter


def trained(compute):
    """Train two steps on four questions; return the loss before each, and the change of the weights."""
    adapter = small_adapter()
    before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
    trainer = Trainer(adapter, compute, StepOptions(batch_size=4, learning_rate=1e-3), total=2)
    batch = adapter.collate(questions(4))
    losses = [trainer.step(batch, Forwarding(), step) for step in range(2)]
    moved = torch.cat([(p - before[n]).flatten() for n, p in adapter.model.named_parameters()])
    return losses, moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_steps_follow_single_precision(dtype):
    plain, expected = trained(Compute("cpu", "float32"))
    compute = Compute("cpu", "bfloat16")  # a second precision in the same process
    compute.dtype = dtype  # also float16, which the command line keeps for GPUs
    losses, moved = trained(compute)
    assert losses == pytest.approx(plain, rel=0.02)
    assert losses[1] < losses[0]
    assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > 0.9


@pytest.mark.parametrize("times", [0.0, 0.1, 1.0])
def test_the_vision_tower_has_its_own_learning_rate(times):
    """AdamW's first step changes a weight by its learning rate, for any gradient."""
    adapter = small_adapter()
    adapter.train_parts({"vision", "language"})
    before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
    options = StepOptions(4, 1e-3, tower=times, weight_decay=0.0, warmup_steps=0)
    trainer = Trainer(adapter, Compute("cpu", "float32"), options, total=1)
    trainer.step(adapter.collate(questions(4)), Forwarding(), 0)
    moved = {
        name: (p - before[name]).abs().max().item() for name, p in adapter.model.named_parameters()
    }
    tower = max(moved[name] for name in moved if "vision_tower" in name)
    rest = max(moved[name] for name in moved if "vision_tower" not in name)
    assert rest == pytest.approx(1e-3, rel=0.01)
    assert tower == pytest.approx(times * 1e-3, rel=0.01)


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(CompExportError, match="float16 needs a GPU"):
        Compute("cpu", "float16")
