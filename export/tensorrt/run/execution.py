"""A TensorRT engine on the GPU, and its execution contexts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comp.errors import CompExportError
from export.tensorrt.library import TensorRT
from export.tensorrt.manifest import REMEDY


class Execution:
    """An execution context: one profile of an engine, on one stream.

    Addresses stay bound, so that a step with new data only is one call.
    """

    def __init__(self, context: Any, stream: int, name: str) -> None:
        self._context = context
        self._stream = stream
        self._name = name

    def bind_input(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """Set the address and shape of an input.

        Raises:
            CompExportError: the shape is outside the profile.
        """
        self.shape_input(name, shape)
        self.bind_output(name, address)

    def shape_input(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input without an address; raises as ``bind_input``."""
        if not self._context.set_input_shape(name, shape):
            raise CompExportError(
                f"{self._name}: {name} of shape {list(shape)} is outside the engine's profile: "
                f"{REMEDY} and larger limits"
            )

    def output_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once every input has one.

        Raises:
            CompExportError: it depends on more than the inputs' shapes.
        """
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise CompExportError(
                f"{self._name}: the shape {list(shape)} of {name} is not known before it runs: {REMEDY}"
            )
        return shape

    def bind_output(self, name: str, address: int) -> None:
        """Set the address of an output."""
        if not self._context.set_tensor_address(name, address):
            raise CompExportError(f"{self._name} has no tensor {name}: {REMEDY}")

    def enqueue(self) -> None:
        """Run on the stream; returns at once."""
        if not self._context.execute_async_v3(self._stream):
            raise CompExportError(
                f"{self._name} failed to run: see TensorRT's message above; use --backend "
                "onnxruntime to go on without it"
            )


# NumPy has no bfloat16: such a tensor stays on the GPU.
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
}


@dataclass(frozen=True)
class Port:
    """An input or output of an engine; ``dtype`` is NumPy's, or ``None`` if NumPy lacks it."""

    name: str
    is_input: bool
    itemsize: int
    dtype: type[np.generic] | None


class LoadedEngine:
    """A deserialised engine; its weights are on the GPU once, for any number of contexts."""

    def __init__(self, tensorrt: TensorRT, path: Path, runtime: Any) -> None:
        """``runtime`` is the module's ``Runtime``.

        Raises:
            CompExportError: TensorRT refuses the file, or memory is used up.
        """
        self._trt = tensorrt.module
        self._tensorrt = tensorrt
        self.name = path.stem
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise CompExportError(
                f"{tensorrt.name} {tensorrt.version} does not take {path} (its reason is above; "
                f"often the GPU's memory is used up): {REMEDY}"
            )

    def ports(self) -> dict[str, Port]:
        """Inputs and outputs by name."""
        ports = {}
        for number in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(number)
            dtype = self.engine.get_tensor_dtype(name)
            is_input = self.engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            ports[name] = Port(name, is_input, dtype.itemsize, NUMPY_TYPES.get(dtype.name))
        return ports

    def stream_weights(self) -> None:
        """Keep as many weights on the GPU as its memory allows, and stream the others."""
        self.engine.weight_streaming_budget_v2 = self.engine.get_weight_streaming_automatic_budget()

    def refit(self, graph: Path, log: Any) -> None:
        """Load stripped weights from the ONNX graph.

        Raises:
            CompExportError: the graph is missing, or its weights do not fit.
        """
        if not graph.is_file():
            raise CompExportError(
                f"{graph} is missing: the engine's weights were stripped and are read from it; "
                "export it again, or build with --weights embedded"
            )
        refitter = self._trt.Refitter(self.engine, log)
        parser = self._trt.OnnxParserRefitter(refitter, log)
        if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise CompExportError(f"{graph} does not fit the engine {self.name}: {REMEDY}")

    def context(self, profile: int, stream: int, replayed: bool = False) -> Execution:
        """Create an execution context.

        Args:
            profile: number of the optimisation profile.
            stream: stream that it runs on.
            replayed: whether it runs repeatedly with the same shapes: ``tensorrt_rtx`` then captures a
                CUDA graph by itself (with ``tensorrt`` the caller does).
        """
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )
        if replayed and captures_graphs(self._tensorrt):
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = self.engine.create_execution_context(config)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise CompExportError(
                f"no execution context for {self.name}: the GPU's memory is used up; build with a "
                "smaller --max-batch or --max-prompt, or --weights streamed"
            )
        return Execution(context, stream, self.name)


def captures_graphs(tensorrt: TensorRT) -> bool:
    """Whether this TensorRT captures CUDA graphs by itself."""
    return hasattr(tensorrt.module, "CudaGraphStrategy")
