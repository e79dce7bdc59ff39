"""Distil from the dense model into the pruned one (Hinton et al., 2015).

The frozen dense model sees every training batch, as the pruned one does. Its logits carry more information
than the labels: which other answers are nearly right. Its features, the final states of its tokens, are
targets for the tokens that are left.
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
from comp.registry.family import Distill
from comp.tokens.state import TokenState
from comp.utils.compute import Compute


@dataclass(frozen=True)
class DistillOptions:
    """Options of distillation.

    Attributes:
        what: logits, features, both or none.
        weight: weight of the distillation loss; the task's loss has weight 1.
        temperature: divides the logits of both models.

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
    """The frozen dense model as a teacher; see ``comp.training.trainer.Trainer``.

    Args:
        options: options of distillation; ``what`` is not ``none``.
        teacher: a dense adapter. Its weights must not change while it teaches.
        compute: its device and precision.
        plainly: a context in which the teacher's model is the dense one. Under LoRA teacher and student
            share a model, and this context turns the LoRA layers off.
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
        """Targets of the dense model for a batch, without masks, drops or gradients."""
        with self.plainly(), torch.no_grad(), self.compute.autocast():
            return self.teacher.score(batch, Forwarding()).targets()

    def loss(
        self, student: DistillationTargets, teacher: DistillationTargets, share: float = 1.0
    ) -> Tensor:
        """Weighted sum of the chosen losses; each is a mean over its logits or parts of the model.

        Args:
            student, teacher: targets of both models for a batch.
            share: what this process's gradients are multiplied with (``Trainer``): its share of all logits.
                Features are a mean over tokens, of which it may have another share.
        """
        options, losses = self.options, []
        if options.what in ("logits", "both"):
            pairs = zip(student.logits, teacher.logits, strict=True)
            losses.append(_mean([logit_loss(s, t, options.temperature) for s, t in pairs]))
        if options.what in ("features", "both"):
            parts = zip(student.tokens, teacher.tokens, strict=True)
            losses.append(_mean([self._relative(s, share) * feature_loss(s, t) for s, t in parts]))
        return options.weight * torch.stack(losses).sum()

    def _relative(self, tokens: TokenState, share: float) -> float:
        """This process's share of the tokens, relative to its share of the logits."""
        (own,) = self.compute.shares([float(tokens.alive.sum())])
        return own / share if share else 0.0


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Loss ``T² KL(softmax(teacher / T) ‖ softmax(student / T))``, mean over rows; logits ``[J, C]``.

    T² keeps the size of gradients when the temperature changes (Hinton et al., 2015, section 2).
    """
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float().to(student_log.device) / temperature, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def feature_loss(student: TokenState, teacher: TokenState) -> Tensor:
    """Loss ``1 - cosine`` of final states, mean over the tokens that the student has left.

    A token is compared with the teacher's token of the same original index, weighted by its presence.
    Cosine and not MSE: the layers that read the states normalise them, or are trained too.

    Args:
        student: tokens ``[B, K, d]`` that reached the end.
        teacher: the whole sequence ``[B, N, d]``, index ``n`` at place ``n``.
    """
    places = student.index.to(teacher.states.device)[..., None]
    teacher_states = teacher.states.gather(1, places.expand(-1, -1, teacher.states.shape[-1]))
    states = student.states.float()
    far = 1 - F.cosine_similarity(
        states, teacher_states.float().to(states.device), dim=-1
    )  # [B, K]
    present = student.alive.to(far)
    return (far * present).sum() / present.sum()


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()
