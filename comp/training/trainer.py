"""Train an adapter: during a stage with decaying masks, and in recovery."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from comp.adapter import DistillationTargets, FamilyAdapter, Forwarding
from comp.data.example import AnyExample
from comp.training.distillation import Distiller
from comp.utils.compute import Compute


@dataclass(frozen=True)
class StepOptions:
    """Batch size (over all processes), peak learning rate, and weight decay.

    Attributes:
        tower: learning rate of ``FamilyAdapter.tower``, as a multiple of ``learning_rate``.
    """

    batch_size: int = 32
    learning_rate: float = 1e-4
    tower: float = 1.0
    weight_decay: float = 0.01
    warmup_steps: int = 5


def examples_of(
    data: Sequence[AnyExample], step: int, batch_size: int, seed: int
) -> list[AnyExample]:
    """Examples of a step, the same on every call: each epoch is a permutation by its own seed."""
    examples = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(place, len(data))
        order = _permutation(len(data), epoch, seed)
        examples.append(data[int(order[offset])])
    return examples


def repeated(step: int, count: int, seed: int) -> int:
    """Number of a step's batch, of ``count`` that repeat; later epochs each have an order of their own."""
    epoch, place = divmod(step, count)
    return place if epoch == 0 else int(_permutation(count, epoch, seed)[place])


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    key = (count, epoch, seed)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 1:  # that of the examples, and that of batches that repeat
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch, 103]).permutation(count)
    return _PERMUTATIONS[key]


def prefetched(compute: Compute, make: Callable[[int], Any], steps: range) -> Iterator[Any]:
    """Yield ``make(step)`` for every step, made ahead in a thread; waiting is timed as ``data``."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(make, step) for step in steps[:2]]
        for step in steps:
            next_batch = ahead.pop(0)
            if step + 2 in steps:
                ahead.append(pool.submit(make, step + 2))
            with compute.timed("data"):
                made = next_batch.result()
            yield made


class Trainer:
    """Takes AdamW steps over an adapter's trainable weights; with a distiller, adds its loss.

    Attributes:
        share: this process's share of the terms of the last step's loss.
    """

    def __init__(
        self,
        adapter: FamilyAdapter,
        compute: Compute,
        options: StepOptions,
        total: int,
        distiller: Distiller | None = None,
    ) -> None:
        self.adapter, self.compute, self.options, self.total = adapter, compute, options, total
        self.distiller = distiller
        self.share = 1.0
        self.parameters = [p for p in adapter.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self._groups(), lr=0.0, weight_decay=options.weight_decay, betas=(0.9, 0.98)
        )
        # Small fp16 gradients vanish unless scaled; torch's first scale, 65536, overflows them and
        # skips steps, of which a stage has few.
        half = compute.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(compute.device.type, init_scale=1024.0, enabled=half)

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups, by multiple of the learning rate."""
        tower = self.adapter.tower
        within = set() if tower is None else set(tower.parameters())
        kinds = [(1.0, [p for p in self.parameters if p not in within])]
        kinds.append((self.options.tower, [p for p in self.parameters if p in within]))
        return [{"params": weights, "times": times} for times, weights in kinds if weights]

    def targets(self, batch: Any) -> DistillationTargets | None:
        """Targets of the teacher for a batch; None without one."""
        if self.distiller is None:
            return None
        with self.compute.timed("distillation"):
            return self.distiller.targets(batch)

    def step(
        self,
        batch: Any,
        forwarding: Forwarding,
        number: int,
        targets: DistillationTargets | None = None,
    ) -> float:
        """Take one step (``number`` from 0 of ``total``), and return the task's loss.

        Args:
            targets: those of the teacher for this batch, if they are known.
        """
        rate = self.options.learning_rate * _schedule(number, self.total, self.options.warmup_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["times"]
        # The teacher runs first: its activations are freed before the student's are kept.
        targets = targets or self.targets(batch)
        with self.compute.timed("training"):
            return self._step(batch, forwarding, targets)

    def _step(
        self, batch: Any, forwarding: Forwarding, teacher_targets: DistillationTargets | None
    ) -> float:
        with self.compute.autocast():
            scored = self.adapter.score(batch, forwarding)
            loss = scored.loss
            (self.share,) = self.compute.shares([scored.terms])
            if self.distiller is not None and teacher_targets is not None:
                loss = loss + self.distiller.loss(scored.targets(), teacher_targets, self.share)
        self.scaler.scale(loss).backward()
        self.compute.average_gradients(self.parameters, self.share)
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return float(scored.loss.detach())


def _schedule(number: int, total: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to 0.05."""
    if number < warmup:
        return (number + 1) / (warmup + 1)
    progress = (number - warmup) / max(1, total - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def accuracy(
    adapter: FamilyAdapter, batches: Sequence[Any], forwarding: Forwarding, compute: Compute
) -> tuple[float, float]:
    """Share of correct predictions (``Scored.correct``), and the mean loss over them.

    Each batch is the shares of all processes together; so is its loss (``Scored.terms``).
    """
    right, rows, terms, losses = 0, [], [], []
    with compute.timed("evaluation"), torch.no_grad(), compute.autocast():
        for batch in batches:
            scored = adapter.score(batch, forwarding)
            correct = scored.correct
            right += int(correct.sum())
            rows.append(len(correct))
            terms.append(scored.terms)
            losses.append(float(scored.loss))
    own = torch.zeros(compute.longest(len(rows)), dtype=torch.float64)
    own[: len(rows)] = torch.tensor(rows, dtype=torch.float64)
    judged = compute.sum(own).tolist()  # by batch
    loss = _summed(compute, losses, terms, judged)
    right_of_all = float(compute.sum(torch.tensor(right, dtype=torch.float64)))
    return right_of_all / sum(judged), loss / sum(judged)


def mean_loss(
    adapter: FamilyAdapter, batches: Sequence[Any], forwarding: Forwarding, compute: Compute
) -> float:
    """Mean of the losses of the batches, each over the shares of all processes (``Scored.terms``).

    Predictions are not judged: in retrieval that costs more than the loss.
    """
    with compute.timed("evaluation"), torch.no_grad(), compute.autocast():
        scored = [adapter.score(batch, forwarding) for batch in batches]
        losses = [float(each.loss) for each in scored]
    count = compute.longest(len(losses))
    return _summed(compute, losses, [each.terms for each in scored], [1.0] * count) / count


def _summed(
    compute: Compute, losses: Sequence[float], terms: Sequence[int], weights: Sequence[float]
) -> float:
    """Weighted sum of the losses of batches over all processes."""
    shares = compute.shares(terms)
    own = sum(
        share * weight * loss
        for share, weight, loss in zip(shares, weights, losses, strict=False)
        if share > 0  # the mean of no terms is NaN
    )
    return float(compute.sum(torch.tensor(own, dtype=torch.float64)))
