"""Interface for loading checkpoints: the steps that differ between families."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.checkpoints.llava_tensors import no_float
from comp.checkpoints.weight_files import FLOATS, stored_tensors

PARAMETERS = (".weight", ".bias")


@dataclass(frozen=True)
class CheckpointClasses:
    """Classes that a checkpoint is loaded with."""

    model: Any
    config: Any
    processor: Any
    adapter: Any


def require_floats(directory: Path, config: dict[str, Any]) -> None:
    """Refuse weights of an unsupported data type.

    Raises:
        CompExportError: names the first such tensor.
    """
    del config
    for name, tensor in stored_tensors(directory).items():
        if tensor.code not in FLOATS and name.endswith(PARAMETERS):
            raise no_float(tensor, name)


def _accept(directory: Path, classes: CheckpointClasses, processor: Any) -> None:
    """Accept every processor: there is no chat template to check."""


@dataclass(frozen=True)
class CheckpointFormat:
    """Loading of a family's checkpoints.

    Attributes:
        classes: returns the classes for a directory's configuration; refuses unsupported architectures.
        check_weights: refuses tensors that transformers would fill with random numbers or misread.
        check_processor: refuses a processor that does not fit the model.
    """

    classes: Callable[[Path, dict[str, Any]], CheckpointClasses]
    check_weights: Callable[[Path, dict[str, Any]], None] = require_floats
    check_processor: Callable[[Path, CheckpointClasses, Any], None] = _accept
