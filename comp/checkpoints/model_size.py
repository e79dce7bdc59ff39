"""Classify models by size: the one place that compares numbers of parameters with bounds.

A model is *small* below 50 million parameters, as the embedded ones are (2 to 9 million): its learning
rates are those of training from scratch. It is *large* from 500 million: training it whole takes 20
bytes a parameter (weights, gradients, two moments of Adam and a teacher, in fp32), so LoRA trains it by
default. Between them it is *medium*, as CLIP-B/16 (150 million) and BLIP (220 to 450 million) are:
trained whole, at low learning rates, with a teacher in memory.
"""

from pathlib import Path
from typing import Literal

from comp.checkpoints.weight_files import stored_tensors
from comp.errors import CompExportError

ModelSize = Literal["small", "medium", "large"]

MEDIUM = 50_000_000  # parameters from which a model is not small
LARGE = 500_000_000  # parameters from which LoRA is the default
STREAMED = 1_000_000_000  # parameters from which what trains nothing reads weights from their files


def size_of(parameters: int) -> ModelSize:
    """Return the size class of a model with this number of parameters."""
    if parameters < MEDIUM:
        return "small"
    return "medium" if parameters < LARGE else "large"


def parameters_of(directory: Path) -> int:
    """Return the number of parameters in a checkpoint; 0 if it cannot be read."""
    try:
        return sum(tensor.count for tensor in stored_tensors(directory).values())
    except CompExportError:
        return 0


def is_streamed(directory: Path) -> bool:
    """Whether a checkpoint stays in its files by default, on a CPU and without training.

    False if it cannot be read: loading it then gives the error.
    """
    return parameters_of(directory) >= STREAMED
