"""Keep what the teacher computed for batches that repeat: it is half of the time of a training step."""

from dataclasses import fields, replace
from typing import Any

import torch

from comp.adapter import DistillationTargets
from comp.tokens.state import TokenState
from comp.training.trainer import Trainer

LARGEST = 2 << 30  # bytes that are kept; targets of batches beyond are computed each time


class KnownTargets:
    """The teacher's targets by the number of their batch, in the memory of the host.

    Features are kept in bfloat16: only their direction teaches, and it changes by less than a part in a
    thousand.

    Args:
        trainer: its teacher computes targets that are not known.
        repeat: whether batches come again; otherwise nothing is kept.
        largest: bytes to keep at most.
    """

    def __init__(self, trainer: Trainer, *, repeat: bool, largest: int = LARGEST) -> None:
        self.trainer, self.repeat, self.left = trainer, repeat, largest
        self._targets: dict[int, DistillationTargets] = {}

    def of(self, number: int, batch: Any) -> DistillationTargets | None:
        """Targets for a batch; None without a teacher."""
        known = self._targets.get(number)
        if known is not None:
            return known
        targets = self.trainer.targets(batch)
        if targets is None or not self.repeat:
            return targets
        kept = _to_keep(targets)
        size = _bytes_of(kept)
        if size <= self.left:
            self.left -= size
            self._targets[number] = kept
        # The same numbers at once as when the batch comes again.
        return kept


def _to_keep(targets: DistillationTargets) -> DistillationTargets:
    return DistillationTargets(
        tuple(logits.to("cpu") for logits in targets.logits),
        tuple(_on_host(tokens) for tokens in targets.tokens),
    )


def _on_host(tokens: TokenState) -> TokenState:
    moved = {
        each.name: value.to("cpu")
        for each in fields(tokens)
        if (value := getattr(tokens, each.name)) is not None
    }
    return replace(tokens, **moved | {"states": moved["states"].to(torch.bfloat16)})


def _bytes_of(targets: DistillationTargets) -> int:
    tensors = [*targets.logits]
    for tokens in targets.tokens:
        tensors += [getattr(tokens, each.name) for each in fields(tokens)]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
