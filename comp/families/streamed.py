"""A LLaVA whose decoder's matrices stay in their files: each is read when it is used, and forgotten.

What pruning without training needs of a model that does not fit into memory: forward passes, and the
few matrices that refitting changes. Tower, projector, embeddings and norms are in memory, in fp32.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from comp.checkpoints.locate import INDEX
from comp.checkpoints.slices import Cut
from comp.checkpoints.tensor_names import canonical_name
from comp.checkpoints.tying import LM_HEAD
from comp.checkpoints.weight_files import stored_tensors
from comp.errors import CompExportError
from comp.families.heads import has_own_head

LARGE = 1_000_000_000  # numbers, from which a model stays in its files unless asked otherwise


class MatrixSource(Protocol):
    """Where a matrix is read from, a copy each time; ``size`` is of what is read."""

    @property
    def size(self) -> tuple[int, ...]: ...

    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class CutMatrix:
    """Rows or columns of a matrix."""

    whole: MatrixSource
    cut: Cut

    @property
    def size(self) -> tuple[int, ...]:
        rows, columns = self.whole.size
        left = len(self.cut.keep)
        return (left, columns) if self.cut.axis == 0 else (rows, left)

    def read(self) -> Tensor:
        return self.whole.read().index_select(self.cut.axis, torch.tensor(self.cut.keep))


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of a safetensors file."""

    file: Path
    name: str
    size: tuple[int, ...]

    def read(self) -> Tensor:
        """A copy in the type that it is stored in.

        Raises:
            CompExportError: the file is gone or was changed.
        """
        try:
            with safe_open(self.file, framework="pt") as stored:
                found = stored.get_tensor(self.name)
                if tuple(found.shape) != self.size:
                    raise ValueError(f"it is {tuple(found.shape)} now and was {self.size}")
                return found.clone()
        except (OSError, SafetensorError, ValueError) as error:
            raise CompExportError(
                f"cannot read {self.name} of {self.file} ({error}): the checkpoint must stay as it is "
                "while it is pruned"
            ) from error


class StreamedLinear(nn.Module):
    """A linear layer whose weight is read anew whenever it is asked for.

    Attributes:
        changed: the weight instead, where it is not that of the file any more; of the file's type.
    """

    def __init__(self, stored: MatrixSource, bias: Tensor | None = None) -> None:
        super().__init__()
        self.stored = stored
        self.changed: Tensor | None = None
        self.out_features, self.in_features = stored.size
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """``[out_features, in_features]``; a copy, so that changing it takes ``change``."""
        return self.stored.read() if self.changed is None else self.changed.clone()

    def change(self, weight: Tensor) -> None:
        """Take this weight from now on."""
        kept = self.stored.read().dtype if self.changed is None else self.changed.dtype
        self.changed = weight.detach().to("cpu", kept)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight.to(inputs.device)
        if not torch.is_autocast_enabled(inputs.device.type):  # which takes it to its own type
            weight = weight.to(inputs.dtype)
        return F.linear(inputs, weight, self.bias)

    def cut(self, cut: Cut | None) -> "StreamedLinear":
        """A layer of its own of these rows or columns; none: of all."""
        bias = None if self.bias is None else self.bias.detach().clone()
        if cut is None:
            found = StreamedLinear(self.stored, bias)
            found.changed = self.changed
            return found
        keep = torch.tensor(cut.keep)
        if bias is not None and cut.axis == 0:
            bias = bias[keep]
        found = StreamedLinear(CutMatrix(self.stored, cut), bias)
        if self.changed is not None:
            found.changed = self.changed.index_select(cut.axis, keep)
        return found


def is_large(directory: Path) -> bool:
    """Whether a checkpoint has ``LARGE`` numbers; not one that cannot be read, as loading it will say."""
    return stored_numbers(directory) >= LARGE


def stored_numbers(directory: Path) -> int:
    """How many numbers a checkpoint's tensors have; 0 for one that cannot be read."""
    try:
        return sum(tensor.count for tensor in stored_tensors(directory).values())
    except CompExportError:
        return 0


def streamed_layers(model: nn.Module) -> dict[str, StreamedLinear]:
    """Those of a model, by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, StreamedLinear)
    }


def without_layers(config: Any) -> Any:
    """The config of a LLaVA, dense or slim, that has no decoder blocks."""
    shell = deepcopy(config)
    shell.text_config.num_hidden_layers = 0
    pruning = getattr(shell, "pruning", None)
    if pruning and "language" in pruning:
        pruning["language"] = {name: [] for name in pruning["language"]}
    return shell


def stream_decoder(shell: Any, whole: Any, directory: Path) -> None:
    """Give a model that was loaded without decoder blocks those of its checkpoint.

    Args:
        shell: of ``without_layers``; changed in place.
        whole: on the meta device, of the checkpoint's config.
        directory: the checkpoint, which ``check_llava`` let pass.
    """
    files = {
        canonical_name(name): (name, tensor) for name, tensor in stored_tensors(directory).items()
    }
    layers = whole.model.language_model.layers
    prefix = "model.language_model.layers."

    def stored(name: str) -> StoredMatrix:
        key, tensor = files[prefix + name]
        return StoredMatrix(tensor.file, key, tensor.shape)

    def in_memory(name: str) -> Tensor:
        return stored(name).read().float()

    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear):
            bias = None
            if module.bias is not None:
                bias = in_memory(f"{name}.bias")
            matrix = stored(f"{name}.weight")
            layers.set_submodule(name, StreamedLinear(matrix, bias))
    others = {
        name: in_memory(name) for name, parameter in layers.named_parameters() if parameter.is_meta
    }
    layers.load_state_dict(others, strict=False, assign=True)
    shell.model.language_model.layers = layers
    for config in (shell.config.text_config, shell.model.language_model.config):
        config.num_hidden_layers = len(layers)
    if getattr(shell.config, "pruning", None):
        shell.config.pruning = whole.config.pruning
    shell.requires_grad_(requires_grad=False)


def save_streamed(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write weights, a file for each decoder block and one for all else, and the configuration."""
    streamed = streamed_layers(model)
    layers = sorted({_block(name) for name in streamed})
    state = model.state_dict()
    if not has_own_head(model):
        del state[LM_HEAD]
    files: dict[str, str] = {}
    total = 0
    for number, block in enumerate((-1, *layers), start=1):
        tensors = {
            name: tensor.to("cpu", dtype).contiguous()
            for name, tensor in state.items()
            if _block(name) == block
        }
        tensors |= {
            f"{name}.weight": layer.weight.to(dtype)
            for name, layer in streamed.items()
            if _block(name) == block
        }
        file = f"model-{number:05}-of-{len(layers) + 1:05}.safetensors"
        save_file(tensors, directory / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (directory / INDEX).write_text(
        json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    config = deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)


def _block(name: str) -> int:
    """The number of the decoder block that a tensor is of; -1: of no block."""
    _, found, rest = name.partition("language_model.layers.")
    return int(rest.partition(".")[0]) if found else -1
