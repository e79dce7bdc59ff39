"""``config.pbtxt``: a Triton model's configuration in protobuf's text format.

The fields are those of ``inference.ModelConfig`` (``model_config.proto`` of Triton's repository "common").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from comp.errors import CompExportError

Place = Literal["cpu", "cuda"]
# Of ONNX's TensorProto.DataType.
DATA_TYPES = {
    1: "TYPE_FP32",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    9: "TYPE_BOOL",
    10: "TYPE_FP16",
    16: "TYPE_BF16",
}
ANY = -1  # a size that may differ from request to request


@dataclass(frozen=True)
class TensorConfig:
    """An input or output.

    Attributes:
        dims: sizes; ``ANY`` where they are free. Without the batch of a model that Triton batches.
        optional: whether a request may leave the input out.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of one model.

    Attributes:
        backend: ``onnxruntime``, ``tensorrt`` or ``python``.
        inputs, outputs: the tensors; none where Triton reads them from a plan.
        place: where the model runs; on a machine with several GPUs: on the first that Triton sees.
        instances: copies of the model.
        max_batch_size: most requests that Triton runs together; 0: it leaves each as it is.
        decoupled: whether a request may have several responses.
        parameters: strings for the backend or the model.
    """

    name: str
    backend: str
    place: Place
    inputs: Sequence[TensorConfig] = ()
    outputs: Sequence[TensorConfig] = ()
    instances: int = 1
    max_batch_size: int = 0
    decoupled: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The content of ``config.pbtxt``."""
        lines = [
            f"name: {_quoted(self.name)}",
            f"backend: {_quoted(self.backend)}",
            f"max_batch_size: {self.max_batch_size}",
        ]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                lines += [f"{kind} {{", *_of_tensor(tensor), "}"]
        lines += ["instance_group {", f"  count: {self.instances}"]
        lines += ["  kind: KIND_CPU"] if self.place == "cpu" else ["  kind: KIND_GPU", "  gpus: 0"]
        lines.append("}")
        if self.max_batch_size:
            lines.append("dynamic_batching { }")
        if self.decoupled:
            lines.append("model_transaction_policy { decoupled: true }")
        for key, value in self.parameters.items():
            entry = f"key: {_quoted(key)} value {{ string_value: {_quoted(value)} }}"
            lines.append(f"parameters {{ {entry} }}")
        return "\n".join(lines) + "\n"


def data_type_of(dtype: int, where: str) -> str:
    """Triton's name of an ONNX element type.

    Raises:
        CompExportError: it has none.
    """
    if dtype not in DATA_TYPES:
        raise CompExportError(f"{where} is of ONNX element type {dtype}, which Triton is not given")
    return DATA_TYPES[dtype]


def _of_tensor(tensor: TensorConfig) -> list[str]:
    lines = [f"  name: {_quoted(tensor.name)}", f"  data_type: {tensor.data_type}"]
    lines += [f"  dims: {size}" for size in tensor.dims]
    return [*lines, "  optional: true"] if tensor.optional else lines


def _quoted(text: str) -> str:
    """A string literal of the text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
