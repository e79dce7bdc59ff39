"""The largest numbers that a checkpoint computes with on examples, before it is exported in float16.

torch runs the model in float32 and is listened to: what goes into and comes out of every layer and norm, and
the weights of layers. The residual stream is what goes into norms; products of an FFN go into its last layer.
Queries and keys are heard too: scores of attention are added up in float32 by the kernels of either flavour.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comp.adapter import FamilyAdapter, Forwarding
from comp.checkpoints.model_size import is_streamed
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.registry import family_called, resolve
from export.artifact.manifest import Activations
from export.graph.builder import Target
from export.graph.float32_layers import CAREFUL, FLOAT16_MOST, listed, overflow_warning, wide_of
from export.verify.interface import Examples

FEW = 8  # examples: what is beyond float16 is so on most prompts, on the first token above all


@dataclass(frozen=True)
class Half:
    """How to export a checkpoint in float16, and why."""

    target: Target
    activations: Activations | None

    @classmethod
    def of(cls, checkpoint: Path, target: Target, examples: Examples) -> "Half":
        """Measure a checkpoint, and keep in float32 what of a LLaVA's decoder goes beyond float16.

        Args:
            checkpoint: dense or slim.
            target: of float16.
            examples: of the model's task; the first ones are tried.

        Raises:
            CompExportError: as ``largest_numbers``.
        """
        found = largest_numbers(checkpoint, examples)
        if found is None:
            return cls(target, None)
        wide, beyond = wide_of(found)
        where = max(found, key=lambda name: found[name])
        activations = Activations(
            largest=found[where],
            where=where,
            examples=min(FEW, len(examples)),
            float32=wide.names,
            beyond=beyond,
        )
        return cls(replace(target, wide=wide), activations)

    def words(self, which: str) -> list[str]:
        """The warning for a user; none where all is well."""
        found = self.activations
        if found is None:
            return [
                (
                    f"{which}: activations were not measured, for the model is too large to try in torch: "
                    "look with `comp-export eval` whether float16 holds them"
                )
            ]
        if found.largest <= CAREFUL:
            return []
        lines = [
            (
                f"{which}: the largest activation on {found.examples} examples is {found.largest:,.0f} "
                f"({found.where}), and float16 ends at {FLOAT16_MOST:,.0f}"
            )
        ]
        if found.float32:
            lines.append(f"{which}: in float32 therefore: {listed(found.float32)}")
        warning = overflow_warning(which, found)
        return lines if warning is None else [*lines, warning]


def largest_numbers(checkpoint: Path, examples: Examples) -> dict[str, float] | None:
    """The largest absolute number at each module, by its name; none where the model is too large to try.

    Args:
        checkpoint: dense or slim.
        examples: of the model's task.

    Raises:
        CompExportError: the checkpoint cannot be loaded, or gives numbers in float32 that are not finite.
    """
    if is_streamed(checkpoint):
        return None
    adapter = load_adapter(checkpoint, "cpu")
    found: dict[str, float] = {}
    with torch.no_grad(), _listening(adapter, found):
        for index in range(min(FEW, len(examples))):
            adapter.score(adapter.collate([examples[index]]), Forwarding())
    for name, value in found.items():
        if not math.isfinite(value):
            raise CompExportError(
                f"{checkpoint}: {name} gives numbers in float32 that are not finite: the checkpoint is "
                "damaged; take the original again"
            )
    return found


@contextmanager
def _listening(adapter: FamilyAdapter, found: dict[str, float]) -> Iterator[None]:
    """Note the largest number of every module that has no others inside."""
    handles = []
    family = family_called(adapter.name)
    canonical = str if family is None else resolve(family.tensor_name)
    for name, module in adapter.model.named_modules():
        if next(module.children(), None) is not None:
            continue
        known = canonical(f"{name}.weight").removesuffix(".weight")
        if isinstance(module, nn.Linear):
            found[known] = float(module.weight.abs().max())

        def hear(_: nn.Module, read: Any, made: Any, known: str = known) -> None:
            for value in (*read, made):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    found[known] = max(found.get(known, 0.0), _largest(value))

        handles.append(module.register_forward_hook(hear))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _largest(value: Tensor) -> float:
    """Infinite where one is NaN: ``max`` would pass it by, or not."""
    top = float(value.abs().max())
    return math.inf if math.isnan(top) else top
