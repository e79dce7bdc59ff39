"""Measure the largest activations of a checkpoint on examples, before it is exported in float16.

torch runs the model in float32 with hooks that record the inputs and outputs of every layer and norm, and
the weights of layers. The inputs of norms are the residual stream; the input of an FFN's last layer are its
products. Queries and keys are recorded too: both flavours' kernels sum attention scores in float32.
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
from comp.registry.code import resolve
from comp.registry.families import family_called
from export.artifact.manifest import Activations
from export.graph.builder import Target
from export.graph.float32_layers import CAREFUL, FLOAT16_MOST, listed, overflow_warning, wide_of
from export.proof.interface import Examples

FEW = 8  # examples: overflow shows on most prompts, above all on the first token


@dataclass(frozen=True)
class Half:
    """Target of an export in float16, and the measurements that it follows from."""

    target: Target
    activations: Activations | None

    @classmethod
    def of(cls, checkpoint: Path, target: Target, examples: Examples) -> "Half":
        """Measure a checkpoint, and keep in float32 the parts of a LLaVA decoder that exceed float16.

        Args:
            checkpoint: dense or slim.
            target: a float16 target.
            examples: examples of the model's task; the first ones are used.

        Raises:
            CompExportError: as ``largest_numbers``.
        """
        largest = largest_numbers(checkpoint, examples)
        if largest is None:
            return cls(target, None)
        wide, beyond = wide_of(largest)
        where = max(largest, key=lambda name: largest[name])
        activations = Activations(
            largest=largest[where],
            where=where,
            examples=min(FEW, len(examples)),
            float32=wide.names,
            beyond=beyond,
        )
        return cls(replace(target, wide=wide), activations)

    def warnings(self, which: str) -> list[str]:
        """Warnings for a user; empty when float16 is safe."""
        activations = self.activations
        if activations is None:
            return [
                (
                    f"{which}: activations were not measured, for the model is too large to try in torch: "
                    "look with `comp-export eval` whether float16 holds them"
                )
            ]
        if activations.largest <= CAREFUL:
            return []
        lines = [
            (
                f"{which}: the largest activation on {activations.examples} examples is "
                f"{activations.largest:,.0f} ({activations.where}), and float16 ends at {FLOAT16_MOST:,.0f}"
            )
        ]
        if activations.float32:
            lines.append(f"{which}: in float32 therefore: {listed(activations.float32)}")
        warning = overflow_warning(which, activations)
        return lines if warning is None else [*lines, warning]


def largest_numbers(checkpoint: Path, examples: Examples) -> dict[str, float] | None:
    """Return the largest absolute value at each module, by name; ``None`` if the model is too large to run.

    Args:
        checkpoint: dense or slim.
        examples: examples of the model's task.

    Raises:
        CompExportError: the checkpoint cannot be loaded, or gives numbers in float32 that are not finite.
    """
    if is_streamed(checkpoint):
        return None
    adapter = load_adapter(checkpoint, "cpu")
    largest: dict[str, float] = {}
    with torch.no_grad(), _recording(adapter, largest):
        for index in range(min(FEW, len(examples))):
            adapter.score(adapter.collate([examples[index]]), Forwarding())
    for name, value in largest.items():
        if not math.isfinite(value):
            raise CompExportError(
                f"{checkpoint}: {name} gives numbers in float32 that are not finite: the checkpoint is "
                "damaged; take the original again"
            )
    return largest


@contextmanager
def _recording(adapter: FamilyAdapter, largest: dict[str, float]) -> Iterator[None]:
    """Record the largest value of every leaf module."""
    handles = []
    family = family_called(adapter.name)
    canonical = str if family is None else resolve(family.tensor_name)
    for name, module in adapter.model.named_modules():
        if next(module.children(), None) is not None:
            continue
        key = canonical(f"{name}.weight").removesuffix(".weight")
        if isinstance(module, nn.Linear):
            largest[key] = float(module.weight.abs().max())

        def record(_: nn.Module, inputs: Any, output: Any, key: str = key) -> None:
            for value in (*inputs, output):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    largest[key] = max(largest.get(key, 0.0), _largest(value))

        handles.append(module.register_forward_hook(record))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _largest(value: Tensor) -> float:
    """Return infinity if any value is NaN: ``max`` does not propagate NaN reliably."""
    top = float(value.abs().max())
    return math.inf if math.isnan(top) else top
