"""Stream a model's decoder: its matrices stay in their files, and each is read when it is used.

For pruning without training of a model that does not fit into memory: it needs forward passes, and the few
matrices that refitting changes. Tower, projector, embeddings and norms are in memory, in fp32.
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
from comp.families.llava.parts import parts_of


class MatrixSource(Protocol):
    """Source of a matrix of ``size``, read as a new copy each time."""

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
        """Return a copy in the stored data type.

        Raises:
            CompExportError: the file is missing or was changed.
        """
        try:
            with safe_open(self.file, framework="pt") as stored:
                tensor = stored.get_tensor(self.name)
                if tuple(tensor.shape) != self.size:
                    raise ValueError(f"it is {tuple(tensor.shape)} now and was {self.size}")
                return tensor.clone()
        except (OSError, SafetensorError, ValueError) as error:
            raise CompExportError(
                f"cannot read {self.name} of {self.file} ({error}): the checkpoint must stay as it is "
                "while it is pruned"
            ) from error


class StreamedLinear(nn.Module):
    """A linear layer whose weight is read from its source at every access.

    Attributes:
        changed: the weight that replaces the stored one, in the stored data type; ``None`` if unchanged.
    """

    def __init__(self, stored: MatrixSource, bias: Tensor | None = None) -> None:
        super().__init__()
        self.stored = stored
        self.changed: Tensor | None = None
        self.out_features, self.in_features = stored.size
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """Weight ``[out_features, in_features]``, a copy: use ``change`` to change it."""
        return self.stored.read() if self.changed is None else self.changed.clone()

    def change(self, weight: Tensor) -> None:
        """Replace the weight."""
        kept = self.stored.read().dtype if self.changed is None else self.changed.dtype
        self.changed = weight.detach().to("cpu", kept)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight.to(inputs.device)
        if not torch.is_autocast_enabled(inputs.device.type):  # autocast converts it itself
            weight = weight.to(inputs.dtype)
        return F.linear(inputs, weight, self.bias)

    def cut(self, cut: Cut | None) -> "StreamedLinear":
        """Return a new layer with these rows or columns, or with all of them for ``None``."""
        bias = None if self.bias is None else self.bias.detach().clone()
        if cut is None:
            layer = StreamedLinear(self.stored, bias)
            layer.changed = self.changed
            return layer
        keep = torch.tensor(cut.keep)
        if bias is not None and cut.axis == 0:
            bias = bias[keep]
        layer = StreamedLinear(CutMatrix(self.stored, cut), bias)
        if self.changed is not None:
            layer.changed = self.changed.index_select(cut.axis, keep)
        return layer


def streamed_layers(model: nn.Module) -> dict[str, StreamedLinear]:
    """Streamed layers of a model, by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, StreamedLinear)
    }


def without_layers(config: Any) -> Any:
    """Return the config of a model, dense or slim, without its decoder blocks."""
    shell = deepcopy(config)
    shell.text_config.num_hidden_layers = 0
    pruning = getattr(shell, "pruning", None)
    if pruning and "language" in pruning:
        pruning["language"] = {name: [] for name in pruning["language"]}
    return shell


def stream_decoder(shell: Any, whole: Any, directory: Path) -> None:
    """Add streamed decoder blocks to a model that was loaded without them.

    Args:
        shell: the model of ``without_layers``; changed in place.
        whole: the whole model of the checkpoint's config, on the meta device.
        directory: the checkpoint, checked by ``check_llava``.
    """
    files = {
        canonical_name(name): (name, tensor) for name, tensor in stored_tensors(directory).items()
    }
    layers, language = parts_of(whole).language.layers, parts_of(shell).language
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
    language.layers = layers
    for config in (shell.config.text_config, language.config):
        config.num_hidden_layers = len(layers)
    if getattr(shell.config, "pruning", None):
        shell.config.pruning = whole.config.pruning
    shell.requires_grad_(requires_grad=False)


def save_streamed(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write the configuration and the weights: one file for each decoder block, one for the rest."""
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
    """Number of the decoder block that a tensor belongs to; -1 if none."""
    _, separator, rest = canonical_name(name).partition("language_model.layers.")
    return int(rest.partition(".")[0]) if separator else -1
