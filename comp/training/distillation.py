"""Distillation from the dense model: what the pruned one should still know (Hinton et al., 2015).

The dense model, frozen, sees every training batch beside the pruned one. Its logits say more than the
labels do: which other answers are nearly right. Its features, the final states of its tokens, say what
the tokens that are left should look like to whatever reads them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.adapter import DistillationTargets, FamilyAdapter, Forwarding
from comp.errors import CompExportError
from comp.registry import Distill
from comp.tokens.state import TokenState
from comp.utils.compute import Compute


@dataclass(frozen=True)
class DistillOptions:
    """What is learnt from the dense model.

    Attributes:
        what: logits, features, both or none.
        weight: of the distillation loss beside the task's, which has 1.
        temperature: that softens both models' logits.

    Raises:
        CompExportError: an unknown kind, or a weight or temperature that is not above 0.
    """

    what: Distill = "none"
    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.what not in get_args(Distill):
            raise CompExportError(
                f"distillation of {self.what!r}: choose from {', '.join(get_args(Distill))}"
            )
        for name, value in (("weight", self.weight), ("temperature", self.temperature)):
            if not value > 0:
                raise CompExportError(
                    f"a distillation {name} of {value:g} teaches nothing: give one above 0"
                )


class Distiller:
    """The frozen dense model beside the one in training; see ``comp.training.trainer.Trainer``.

    Args:
        options: what is learnt, not ``none``.
        teacher: a dense adapter. Its weights must not change while it teaches.
        compute: its device and precision.
        plainly: a context in which the teacher's model is the dense one; under LoRA teacher and student
            are one model, and inside this context its adapters are off.
    """

    def __init__(
        self,
        options: DistillOptions,
        teacher: FamilyAdapter,
        compute: Compute,
        plainly: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.options, self.teacher, self.compute, self.plainly = options, teacher, compute, plainly

    def targets(self, batch: Any) -> DistillationTargets:
        """What the dense model makes of a batch: nothing is masked or dropped, no gradient is kept."""
        with self.plainly(), torch.no_grad(), self.compute.autocast():
            return self.teacher.score(batch, Forwarding()).targets()

    def loss(self, student: DistillationTargets, teacher: DistillationTargets) -> Tensor:
        """Weighted sum of the losses asked for; each is a mean over its logits or parts of the model."""
        options, losses = self.options, []
        if options.what in ("logits", "both"):
            pairs = zip(student.logits, teacher.logits, strict=True)
            losses.append(_mean([logit_loss(s, t, options.temperature) for s, t in pairs]))
        if options.what in ("features", "both"):
            parts = zip(student.tokens, teacher.tokens, strict=True)
            losses.append(_mean([feature_loss(s, t) for s, t in parts]))
        return options.weight * torch.stack(losses).sum()


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))``, mean over rows; logits ``[J, C]``.

    T² keeps the size of gradients when the temperature changes (Hinton et al., 2015, section 2).
    """
    said = F.log_softmax(student.float() / temperature, dim=-1)
    wanted = F.log_softmax(teacher.float().to(said.device) / temperature, dim=-1)
    divergence = F.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def feature_loss(student: TokenState, teacher: TokenState) -> Tensor:
    """``1 - cosine`` of final states, mean over the tokens that the student has left.

    A token is compared with the teacher's of the same original index; one that fades out counts by its
    presence, and one that is gone has no feature to compare. Cosine and not MSE: what reads the states
    normalises them, or is itself trained on.

    Args:
        student: tokens ``[B, K, d]`` that reached the end.
        teacher: the whole sequence ``[B, N, d]`` in its order: index ``n`` at place ``n``.
    """
    places = student.index.to(teacher.states.device)[..., None]
    wanted = teacher.states.gather(1, places.expand(-1, -1, teacher.states.shape[-1]))
    states = student.states.float()
    far = 1 - F.cosine_similarity(states, wanted.float().to(states.device), dim=-1)  # [B, K]
    present = student.alive.to(far)
    return (far * present).sum() / present.sum()


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()
