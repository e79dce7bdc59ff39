"""Run in every one of two processes by ``test_compute``: means of shards of unequal size."""

from dataclasses import dataclass
from math import isclose

import torch

from comp.adapter import DistillationTargets, Forwarding, Scored
from comp.training.trainer import accuracy, mean_loss
from comp.utils.compute import Compute


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor  # [B], each the loss of its example


class Adapter:
    def rows(self, batch):
        return len(batch.input_ids)

    def score(self, batch, forwarding):
        def judge():
            return batch.input_ids > 2

        loss = batch.input_ids.mean()
        return Scored(loss, judge, {}, lambda: DistillationTargets((), ()))


def main():
    compute = Compute("cpu", "float32")
    assert compute.processes == 2
    number = compute.accelerator.process_index

    examples = [1.0, 2.0, 3.0, 4.0, 9.0]
    shard = compute.shard(examples)
    assert len(shard) == compute.shard_size(5) == (3, 2)[number]
    mine = torch.tensor(shard)
    assert torch.isclose(compute.mean(mine.mean(), len(mine)), torch.tensor(19 / 5))
    assert compute.sum(torch.tensor(number + 1.0)) == 3

    nothing = torch.tensor(float("nan") if number else 6.0)
    assert compute.mean(nothing, 0 if number else 2) == 6, "a process without examples is left out"
    vectors = torch.tensor([1.0, 2.0]) * (number + 1)
    weighed = compute.mean(vectors, torch.tensor([3.0, 1.0]) if number else torch.tensor([1, 1]))
    assert torch.allclose(weighed, torch.tensor([7 / 4, 3.0]))

    batches = [Batch(mine), Batch(mine + 1)]
    right, loss = accuracy(Adapter(), batches, Forwarding(), compute)
    assert isclose(right, 7 / 10), right
    assert isclose(loss, (19 + 24) / 10, rel_tol=1e-6), loss
    assert isclose(mean_loss(Adapter(), batches, Forwarding(), compute), 4.3, rel_tol=1e-6)

    # Only the first process reaches the second weight, none the third.
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    weights[0].grad = torch.full((2,), mine.mean().item())
    if number == 0:
        weights[1].grad = torch.full((2,), 5.0)
    compute.average_gradients(weights, len(mine))
    assert torch.allclose(weights[0].grad, torch.tensor(19 / 5))
    assert torch.allclose(weights[1].grad, torch.tensor(3.0))
    assert weights[2].grad is None


if __name__ == "__main__":
    main()
