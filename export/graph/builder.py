"""Build an ONNX graph node by node, with weights that are read only when the file is written."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from comp.errors import CompExportError
from export.artifact.manifest import Computed, Flavour, Precision, Rounding, computed_in
from export.graph.float32_layers import NONE, Wide
from export.graph.integer_rounding import Quantised

# 18 is the oldest with every operator used here; TensorRT and OpenVINO parse all of it. The Attention
# operator came with 23, TensorScatter with 24.
OPSET = 18
ATTENTION_OPSET = 23
GROUPS_OPSET = 21  # DequantizeLinear by group, and 4 bits
IN_PLACE_OPSET = 24
IR_VERSION = 10
MICROSOFT = "com.microsoft"
PRODUCER = "comp-export"
INLINE_BYTES = 1024  # smaller constants stay in the graph file

Dim = int | str
Made = TypeVar("Made")


@dataclass(frozen=True)
class Target:
    """Target of a graph: flavour, precision and rounding.

    Attributes:
        integers: matrices already rounded to 4 bits, by tensor name; others are rounded to the nearest.
        wide: parts of a LLaVA decoder that are computed in float32.
    """

    flavour: Flavour = "onnxruntime"
    precision: Precision = "float32"
    integers: Mapping[str, Quantised] = field(default_factory=dict, compare=False, repr=False)
    wide: Wide = NONE

    def __post_init__(self) -> None:
        if self.precision == "bfloat16" and self.flavour != "standard":
            raise CompExportError(
                f"precision bfloat16 with flavour {self.flavour}: ONNX Runtime has no bfloat16 "
                "kernels on a CPU; take float16 here, or --flavour standard for TensorRT"
            )

    @property
    def fused(self) -> bool:
        """Whether the operators of ``com.microsoft`` may be used."""
        return self.flavour == "onnxruntime"

    @property
    def attention_operator(self) -> bool:
        """Whether attention is ONNX's own ``Attention``, which TensorRT maps to one fused kernel.

        In float32 it has no such kernel and refuses the operator (seen: TensorRT-RTX 1.7); the parts are
        written out there.
        """
        return self.flavour == "standard" and self.computed != "float32"

    @property
    def computed(self) -> Computed:
        """The precision of computation and caches."""
        return computed_in(self.precision)

    @property
    def weight_bits(self) -> Literal[4, 8] | None:
        """Bits of quantised weights (``export.graph.integer_rounding``); ``None`` if they are floats."""
        bits: dict[Precision, Literal[4, 8]] = {"int8": 8, "int4": 4}
        return bits.get(self.precision)

    @property
    def rounding(self) -> Rounding | None:
        """The rounding of weights to integers; ``None`` if they are floats."""
        if self.weight_bits is None:
            return None
        return "calibrated" if self.integers else "nearest"

    @property
    def opset(self) -> int:
        if self.weight_bits is not None and not self.fused:
            return GROUPS_OPSET
        return ATTENTION_OPSET if self.attention_operator else OPSET

    @property
    def numpy(self) -> np.dtype[Any]:
        if self.computed == "bfloat16":
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.computed)

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.from_numpy(self.numpy)


class GraphBuilder:
    """Collects inputs, nodes, weights and outputs; ``save`` streams the weights to disk.

    Values of the graph are ``ir.Value``; their names carry the scope they were built in.
    """

    def __init__(self, name: str, target: Target, opset: int | None = None) -> None:
        """``opset`` defaults to the target's; some graphs need a later one."""
        self.name = name
        self.target = target
        self.opset = opset or target.opset
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._weights: dict[str, ir.Value] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._shared: dict[Hashable, Any] = {}
        self._scope: list[str] = []
        self._used: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """``with graph.scope("layers.0"):`` names what is built inside."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    @contextmanager
    def in_float32(self, wide: bool = True) -> Iterator[None]:
        """Build in float32, weights too, if ``wide``.

        The caller casts values from outside.
        """
        before = self.target
        if wide:
            self.target = replace(before, precision="float32")
        try:
            yield
        finally:
            self.target = before

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Declare a graph input; a dimension is a number or a name."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def default_input(self, name: str, default: np.ndarray) -> ir.Value:
        """Declare an optional input: an initializer that can be overridden."""
        value = self._initializer(name, ir.tensor(default, name=name))
        self._inputs.append(value)
        return value

    def output(
        self,
        name: str,
        value: ir.Value,
        dtype: ir.DataType,
        shape: Sequence[Dim],
        renamed: bool = False,
    ) -> None:
        """Declare a graph output: a copy of ``value``, or ``value`` itself under the new name.

        TensorRT updates a cache in place only if the update itself is the output.
        """
        named = value if renamed else self.op("Identity", value)
        named.name = name
        named.type = ir.TensorType(dtype)
        named.shape = ir.Shape(shape)
        self._outputs.append(named)

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and return that output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int | Sequence[bool],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node with several outputs.

        ``outputs`` is their number, or a flag for each (an unused one has an empty name).
        """
        # What is left out at the end must not be there at all: TensorRT
        # (seen: RTX 1.7) refuses it as an empty name.
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        wanted = [True] * outputs if isinstance(outputs, int) else list(outputs)
        name = self._unique(op_type)
        values = [
            ir.Value(name=f"{name}.{place}" if place else f"{name}.out")
            if keep
            else ir.Value(name="")
            for place, keep in enumerate(wanted)
        ]
        node = ir.node(
            op_type,
            inputs,
            attributes={key: value for key, value in attributes.items() if value is not None},
            domain=domain,
            outputs=values,
            name=name,
        )
        self._nodes.append(node)
        return tuple(value for value, keep in zip(values, wanted, strict=True) if keep)

    def shared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what ``make`` built at the first call with this key."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """A small constant; equal ones are shared."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self._constants[key] = self._initializer(name, ir.tensor(array, name=name))
        return self._constants[key]

    def scalar(self, value: float) -> ir.Value:
        """A constant of the graph's precision."""
        return self.constant(value, self.target.numpy)

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        read: Callable[[], np.ndarray],
        dtype: np.dtype[Any] | None = None,
    ) -> ir.Value:
        """Declare a weight that ``read`` returns when the file is written, converted to the precision.

        A second call with the same name returns the same weight.
        """
        stored = dtype or self.target.numpy
        if name in self._weights:
            return self._weights[name]

        def load() -> ir.Tensor:
            array = np.ascontiguousarray(read(), dtype=stored)  # one copy, also when transposed
            if array.shape != tuple(shape):
                raise ValueError(f"weight {name} is {array.shape}, the graph wants {tuple(shape)}")
            return ir.Tensor(array, name=name)

        tensor = ir.LazyTensor(
            load, dtype=ir.DataType.from_numpy(stored), shape=ir.Shape(shape), name=name
        )
        self._weights[name] = self._initializer(name, tensor)
        return self._weights[name]

    def model(self) -> ir.Model:
        """The model, with weights that are not read yet."""
        opsets = {"": self.opset} | (
            {MICROSOFT: 1} if any(n.domain == MICROSOFT for n in self._nodes) else {}
        )
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=opsets,
            name=self.name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER)

    def save(self, path: Path, weights_of: Path | None = None) -> None:
        """Write ``path`` and ``path.data``; stale files of those names are deleted first.

        Args:
            path: the ``.onnx`` file.
            weights_of: a graph in the same directory: weights that it has are read from its data file, and
                only the others are written; if there are none, there is no ``path.data``.

        Raises:
            ValueError: ``weights_of`` has a weight of the same name with another shape or type.
        """
        data = path.with_name(path.name + ".data")
        for stale in (path, data):
            stale.unlink(missing_ok=True)
        if weights_of is not None:
            self._take_weights(weights_of)
            self._write_others(data)
        model = self.model()
        if weights_of is None:
            ir.save(model, path, external_data=data.name, size_threshold_bytes=INLINE_BYTES)
        else:
            ir.save(model, path)

    def _take_weights(self, path: Path) -> None:
        """Point the weights at the data file of another graph."""
        theirs = ir.load(path).graph.initializers
        for name, mine in self._initializers.items():
            tensor = mine.const_value
            assert tensor is not None
            if tensor.nbytes <= INLINE_BYTES:
                continue
            stored = theirs[name].const_value if name in theirs else None
            if not isinstance(stored, ir.ExternalTensor):
                continue
            if (stored.dtype, stored.shape) != (tensor.dtype, tensor.shape):
                raise ValueError(f"weight {name} is another one in {path}")
            mine.const_value = stored

    def _write_others(self, data: Path) -> None:
        """Write the large weights that are in no data file yet."""
        others = [
            value
            for value in self._initializers.values()
            if value.const_value is not None
            and not isinstance(value.const_value, ir.ExternalTensor)
            and value.const_value.nbytes > INLINE_BYTES
        ]
        if not others:
            return
        tensors = [value.const_value for value in others if value.const_value is not None]
        written = ir.external_data.convert_tensors_to_external(tensors, data.parent, data.name)
        for value, tensor in zip(others, written, strict=True):
            value.const_value = tensor

    def _initializer(self, name: str, tensor: Any) -> ir.Value:
        if name in self._initializers:
            raise ValueError(f"two initializers named {name}")
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self._initializers[name] = value
        return value

    def _unique(self, op_type: str) -> str:
        name = "/".join([*self._scope, op_type])
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        return f"{name}_{count}" if count else name
