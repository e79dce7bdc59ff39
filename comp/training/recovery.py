"""Recover the cut model by fine-tuning, with the keep ratios that it is deployed with."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comp.adapter import FamilyAdapter, Forwarding
from comp.plan import PruningPlan
from comp.tokens.drop_rules import rules_from_plan
from comp.training.data import PruningData
from comp.training.distillation import Distiller
from comp.training.known_targets import KnownTargets
from comp.training.trainer import StepOptions, Trainer, examples_of, prefetched, repeated
from comp.utils.compute import Compute
from comp.utils.disk import bytes_of
from comp.utils.files import writing
from comp.utils.progress import Progress

DATA_SEED = 7919  # added to the seed: recovery reads the training data in another order


@dataclass(frozen=True)
class RecoverOptions:
    """Options of recovery; the state is saved every ``save_every`` steps.

    Attributes:
        examples: number of distinct training examples, rounded up to whole batches; None: as many as the
            steps need, or all.
    """

    steps: int = 200
    save_every: int = 25
    seed: int = 0
    training: StepOptions = StepOptions()
    examples: int | None = None

    def batches_of(self, count: int) -> int | None:
        """Number of distinct batches with ``count`` training examples; None: each step has its own."""
        if self.examples is None:
            return None
        return math.ceil(min(self.examples, count) / self.training.batch_size)


def recover(
    adapter: FamilyAdapter,
    plan: PruningPlan,
    compute: Compute,
    data: PruningData,
    options: RecoverOptions,
    folder: Path,
    progress: Progress,
    distiller: Distiller | None = None,
    until: int | None = None,
) -> None:
    """Train the adapter's weights in place; resume from ``folder`` after an interruption.

    With ``options.examples``, batches repeat, each time in another order, and the teacher computes its
    targets for a batch when it first comes.

    With ``until``, stop after that step; a later call continues from there.
    """
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    training = options.training
    trainer = Trainer(adapter, compute, training, options.steps, distiller)
    state_file = folder / "recover.pt"
    begin = _load(state_file, trainer) if state_file.exists() else 0
    end = options.steps if until is None else min(until, options.steps)
    seed = options.seed + DATA_SEED
    distinct = options.batches_of(len(data.train))
    known = KnownTargets(trainer, repeat=distinct is not None)

    def make(step: int) -> tuple[int, Any]:
        number = step if distinct is None else repeated(step, distinct, seed)
        examples = examples_of(data.train, number, training.batch_size, seed)
        return number, adapter.collate(compute.shard(examples))

    with progress.task("recovering", options.steps, begin) as task:
        batches = prefetched(compute, make, range(begin, end))
        for step, (number, batch) in enumerate(batches, start=begin):
            loss = trainer.step(batch, forwarding, step, known.of(number, batch))
            task.at(step + 1)
            if (step + 1) % options.save_every == 0 or step + 1 == until:
                task.note(f"recovering, step {step + 1} of {options.steps}: loss {loss:.3f}")
                if compute.is_main:
                    _save(state_file, trainer, step + 1)
    compute.accelerator.wait_for_everyone()


def _save(path: Path, trainer: Trainer, step: int) -> None:
    state = {
        "step": step,
        "weights": [parameter.detach() for parameter in trainer.parameters],
        "optimiser": trainer.optimiser.state_dict(),
        "scaler": trainer.scaler.state_dict(),
    }
    with writing(path, bytes_of(state)) as temporary:
        torch.save(state, temporary)


def _load(path: Path, trainer: Trainer) -> int:
    state = torch.load(path, map_location=trainer.compute.device, weights_only=True)
    with torch.no_grad():
        for parameter, weight in zip(trainer.parameters, state["weights"], strict=True):
            parameter.copy_(weight)
    trainer.optimiser.load_state_dict(state["optimiser"])
    trainer.scaler.load_state_dict(state["scaler"])
    return int(state["step"])
