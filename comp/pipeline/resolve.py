"""Resolve what a request leaves open: the kind and length of recovery, and the teacher."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from comp.adapter import FamilyAdapter
from comp.pipeline.defaults import recovery_of
from comp.pipeline.options import Recovery
from comp.pipeline.request import PruneRequest
from comp.search.job import Outcome
from comp.training.distillation import Distiller
from comp.training.lora import lora, without_lora
from comp.utils.compute import Compute


@dataclass(frozen=True)
class ResolvedRequest:
    """A request whose ``auto`` is decided by the size of the model.

    Attributes:
        trains: the requested modes, whose parts are trained. A race may prune by only some of them.
    """

    request: PruneRequest
    recovery: Recovery
    trains: tuple[str, ...]

    def with_steps_left_by(self, outcome: Outcome) -> "ResolvedRequest":
        """Add the search steps that the method did not take to recovery, or subtract the excess."""
        request = self.request
        steps = request.recover.steps + request.search.steps - outcome.steps
        return self.with_recovery_of(max(0, steps))

    def with_recovery_of(self, steps: int) -> "ResolvedRequest":
        """Set the number of recovery steps."""
        recovery = replace(self.request.recover, steps=steps)
        return replace(self, request=replace(self.request, recover=recovery))

    def with_search(self, **changes: Any) -> "ResolvedRequest":
        """Change fields of the search's ``MethodOptions``."""
        search = replace(self.request.search, **changes)
        return replace(self, request=replace(self.request, search=search))

    def wrapping(self, adapter: FamilyAdapter) -> AbstractContextManager[None]:
        """Return a context in which the adapter trains LoRA matrices, if the recovery is LoRA."""
        if self.recovery != "lora":
            return nullcontext()
        torch.manual_seed(self.request.search.seed)  # LoRA starts from random matrices
        return lora(adapter, self.request.lora_rank)

    def distiller(
        self,
        compute: Compute,
        load: Callable[[], FamilyAdapter],
        student: FamilyAdapter | None = None,
    ) -> Distiller | None:
        """Return the dense model as teacher; ``None`` without distillation.

        Args:
            compute: device and precision of the teacher.
            load: loads a second model with the dense weights.
            student: the dense model that is being pruned. Under LoRA its own weights do not change, so
                that it is its own teacher.
        """
        options = self.request.distill
        if options.what == "none":
            return None
        if self.recovery == "lora" and student is not None:
            return Distiller(options, student, compute, lambda: without_lora(student))
        teacher = load()
        teacher.model.requires_grad_(requires_grad=False)
        return Distiller(options, teacher, compute)


def resolve_request(request: PruneRequest, parameters: int) -> ResolvedRequest:
    """Decide what a request leaves open, by the number of parameters of its dense model."""
    recovery = recovery_of(parameters, request.recovery)
    if recovery == "none":
        request = replace(
            request,
            search=replace(request.search, steps_per_stage=0),
            recover=replace(request.recover, steps=0),
        )
    if recovery == "lora":  # the model's own weights are the teacher's and are not saved: keep them
        request = replace(request, search=replace(request.search, reconstruct=False))
    return ResolvedRequest(request, recovery, request.search.modes)
