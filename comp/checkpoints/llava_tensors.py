"""List the tensors of a LLaVA, and check that a checkpoint's files have them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comp.checkpoints.decoder_shape import decoder_tensors
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.tensor_names import canonical_name
from comp.checkpoints.tower_shape import tower_tensors
from comp.checkpoints.tying import EMBEDDING, LM_HEAD, stand_ins
from comp.checkpoints.weight_files import FLOATS, StoredTensor, stored_tensors
from comp.errors import CompExportError

# Names of packed weights in GPTQ, AWQ, bitsandbytes, compressed-tensors and 8-bit floats.
PACKED = ("qweight", "qzeros", "SCB", "weight_packed", "weight_scale", "weight_scale_inv", "absmax")


def check_llava(directory: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return the tensors in a LLaVA's files by canonical name, after checking that none is missing.

    Raises:
        CompExportError: a tensor is missing, contradicts ``config.json`` in its shape, or has an
            unsupported data type; or files are damaged.
    """
    shape = ModelShape.from_config(config, str(directory))
    tensors = {canonical_name(name): each for name, each in stored_tensors(directory).items()}
    others = stand_ins(config)
    for name, size in tensors_of(shape):
        tensor = tensors.get(name) or tensors.get(others.get(name, ""))
        if tensor is None:
            raise _missing(directory, name, tensors)
        if tensor.code not in FLOATS:
            raise no_float(tensor, name)
        if tensor.shape != size:
            raise CompExportError(
                f"{tensor.file}: {name} is {list(tensor.shape)}, and config.json says "
                f"{list(size)}: take both files from the same checkpoint"
            )
    return tensors


def no_float(tensor: StoredTensor, name: str) -> CompExportError:
    """Return the error for a tensor of an unsupported data type."""
    remedy = "pass an unquantised checkpoint with --model"
    if tensor.code == "F64":
        remedy = "save the model in float32"
    return CompExportError(
        f"{tensor.file}: {name} is {tensor.code}: only float32, float16 and bfloat16 weights are "
        f"read; {remedy}"
    )


def tensors_of(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield canonical names and shapes of the tensors that the model uses, block by block.

    Tower blocks after the last feature layer are left out, and so is the tower's last norm.
    """
    text = shape.text
    d = text.hidden_size
    yield EMBEDDING, (text.vocab_size, d)
    yield LM_HEAD, (text.vocab_size, d)
    yield from decoder_tensors(text)
    yield from tower_tensors(shape.used_tower)
    yield from shape.connector.tensors()


def _missing(directory: Path, name: str, names: Mapping[str, StoredTensor]) -> CompExportError:
    packed = next((each for each in names if each.rpartition(".")[2] in PACKED), None)
    if packed is not None:
        return CompExportError(
            f"{directory} has {packed} and no {name}: its weights are quantised; pass the unquantised "
            "checkpoint that they were made of"
        )
    return CompExportError(
        f"{directory} has no tensor {name}: not a whole checkpoint of its kind; download it again or "
        "pass another --model"
    )
