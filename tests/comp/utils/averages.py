"""Run by ``test_compute``: in three processes, shards of unequal size give what one process gives.

The processes are forked after the imports, with the variables that torchrun would set.
"""

import multiprocessing
import os
import socket
import sys
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isclose
from types import SimpleNamespace

import torch

from comp.adapter import DistillationTargets, Forwarding, Scored
from comp.masks import Masks
from comp.search.job import agreed_workload
from comp.search.stage import ImportanceOptions, Search, SearchState, Thresholds
from comp.tokens.drop_rules import RatioRule
from comp.training.data import DataSizes, split_data
from comp.training.distillation import Distiller, DistillOptions
from comp.training.reconstruction import reconstruct
from comp.training.trainer import StepOptions, Trainer, accuracy, mean_loss
from comp.utils.compute import Compute
from tests.comp.small import questions, small_adapter

SIZES = DataSizes(calibration=10, validation=9, batch_size=4, cost=5)  # last batches of 2, 1 and 1


class Alone(Compute):
    """One process, whatever was launched."""

    processes = 1

    def shard(self, items):
        return items

    def shard_size(self, count):
        return count


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor  # [B], each the loss of its example


class Adapter:
    def score(self, batch, forwarding):
        def judge():
            return batch.input_ids > 2

        loss = batch.input_ids.mean()
        return Scored(loss, judge, {}, lambda: DistillationTargets((), ()), len(batch.input_ids))


def check_means(compute):
    number = compute.accelerator.process_index
    examples = [1.0, 2.0, 3.0, 4.0, 9.0]
    shard = compute.shard(examples)
    assert len(shard) == compute.shard_size(5) == (2, 2, 1)[number]
    mine = torch.tensor(shard)
    assert torch.isclose(compute.mean(mine.mean(), len(mine)), torch.tensor(19 / 5))
    assert compute.sum(torch.tensor(number + 1.0)) == 6
    assert compute.longest((3, 7, 0)[number]) == 7
    counts = ([1.0, 4.0], [3.0], [])[number]
    assert compute.shares(counts) == ([0.25, 1.0], [0.75], [])[number]

    nothing = torch.tensor(float("nan") if number else 6.0)
    assert compute.mean(nothing, 0 if number else 2) == 6, "a process without examples is left out"
    vectors = torch.tensor([1.0, 2.0]) * (number + 1)
    weights = torch.tensor(([1.0, 1.0], [3.0, 1.0], [0.0, 2.0])[number])
    assert torch.allclose(compute.mean(vectors, weights), torch.tensor([7 / 4, 18 / 4]))

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
    (share,) = compute.shares([len(mine)])
    compute.average_gradients(weights, share)
    assert torch.allclose(weights[0].grad, torch.tensor(19 / 5))
    assert torch.allclose(weights[1].grad, torch.tensor(2.0))
    assert weights[2].grad is None


def check_statistics(compute, alone, adapter, ours, whole):
    """What a plan is made of: workload, importance, kept tokens, losses; of these, plans of a stage."""
    assert len(whole.calibration) == 3
    workloads = [
        agreed_workload(SimpleNamespace(adapter=adapter, compute=each, data=data))
        for each, data in ((compute, ours), (alone, whole))
    ]
    assert workloads[0] == workloads[1]
    options = ImportanceOptions(min_channels=8)
    state = SearchState(Masks.ones(adapter.blocks), Thresholds())
    searches = [
        Search(adapter, each, data.calibration, options, workloads[0])
        for each, data in ((compute, ours), (alone, whole))
    ]
    shared, single = (search.importance(state, {"language", "vision"}) for search in searches)
    for one, other in zip(shared.norms(), single.norms(), strict=True):
        for key, norms in one.items():
            assert torch.allclose(norms, other[key], rtol=1e-5), key
    for mode in adapter.modes:
        target = round(0.8 * searches[1].cost(state))
        first, second = (search.advance(state, mode, target) for search in searches)
        assert first.shares == second.shares, mode
        for mine, others in (
            (first.masks.heads, second.masks.heads),
            (first.masks.channels, second.masks.channels),
        ):
            assert all(torch.equal(mask, others[key]) for key, mask in mine.items()), mode
    place = next(iter(adapter.drop_places))
    forwarding = Forwarding(rules={place: RatioRule(0.5, 0.9)})
    for data in ("validation", "cost", "calibration"):
        pairs = [(getattr(ours, data), compute), (getattr(whole, data), alone)]
        some, all_ = (accuracy(adapter, batches, forwarding, each) for batches, each in pairs)
        assert some[0] == all_[0]
        assert isclose(some[1], all_[1], rel_tol=1e-5), data
        some, all_ = (mean_loss(adapter, batches, forwarding, each) for batches, each in pairs)
        assert isclose(some, all_, rel_tol=1e-5), data


def check_weights(compute, alone, adapter, ours, whole):
    """What changes weights: a step with distillation, and refitting after a cut."""
    after = Masks.ones(adapter.blocks)
    for mask in after.channels.values():
        mask[::3] = 0
    refitted, steps = [], []
    for each, data in ((compute, ours), (alone, whole)):
        student, teacher = deepcopy(adapter.model), deepcopy(adapter.model)
        own = type(adapter)(student, adapter.processor)
        taught = type(adapter)(teacher, adapter.processor)
        reconstruct(own, each, data.calibration, Forwarding(), after)
        refitted.append(torch.cat([weight.flatten() for weight in student.parameters()]))
        student.requires_grad_(True)
        distiller = Distiller(DistillOptions("both", weight=10.0), taught, each)
        trainer = Trainer(own, each, StepOptions(batch_size=4), 1, distiller)
        trainer.optimiser = torch.optim.SGD(trainer.parameters)
        trainer.optimiser.param_groups[0]["times"] = 1e4  # a step shows in the weights
        trainer.step(data.calibration[0], Forwarding(after), 0)
        stepped = torch.cat([weight.detach().flatten() for weight in student.parameters()])
        steps.append(stepped - refitted[-1])
    for ours, single in (refitted, steps):
        assert (ours - single).norm() < 1e-3 * single.norm(), (ours - single).norm() / single.norm()


def check(rank, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    compute, alone = Compute("cpu", "float32"), Alone("cpu", "float32")
    assert (compute.processes, alone.processes) == (3, 1)
    check_means(compute)
    adapter, examples = small_adapter(), questions(20)
    # Answers of many lengths: a shard's share of the tokens is not that of the examples.
    examples = [
        replace(each, answer="red dog " * (n % 4) + each.answer) for n, each in enumerate(examples)
    ]
    ours, whole = (
        split_data(adapter, each, SIZES, examples, examples[3:]) for each in (compute, alone)
    )
    check_statistics(compute, alone, adapter, ours, whole)
    check_weights(compute, alone, adapter, ours, whole)


def main():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=check, args=(rank, port)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
