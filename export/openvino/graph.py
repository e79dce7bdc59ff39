"""Compile a graph with OpenVINO for this CPU and run it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from comp.utils.install import install_hint
from export.artifact.manifest import Precision, computed_in
from export.artifact.weight_groups import GROUPS

NO_BFLOAT16 = "which this CPU does not compute (AVX-512 BF16 or AMX does)"
_RESULT = "/sink_port_0"  # OpenVINO adds it to the name of an output


class OpenVinoGraph:
    """A compiled graph; runs may come from several threads.

    Values that stay between runs (the key/value caches) are ``openvino.Tensor``: a run reads and
    writes them in place. Every run allocates new output tensors, sized as needed, because a request
    that is reused would overwrite its earlier outputs.

    ``bfloat16`` names the outputs of that type, which NumPy lacks: they can be kept but not read.

    Args:
        path: the ``.onnx`` file, of the standard flavour; its external data is in the same folder.
        precision: precision of the artifact. All but bfloat16 are computed in float32.
        threads: threads of one run; ``None`` leaves them to OpenVINO, which takes the physical cores.
        bfloat16: compute in bfloat16, for any precision of the artifact.
        more: OpenVINO properties besides those that all graphs have.
        rewrite: changes the ``openvino.Model`` in place before it is compiled.

    Raises:
        CompExportError: OpenVINO is not installed, refuses the graph, or this CPU has no bfloat16.
    """

    def __init__(
        self,
        path: Path,
        precision: Precision = "float32",
        threads: int | None = None,
        bfloat16: bool = False,
        more: Mapping[str, Any] = MappingProxyType({}),
        rewrite: Callable[[Any], None] | None = None,
    ) -> None:
        self._ov = openvino()
        model = read_model(path)
        if rewrite is not None:
            with loading(path):
                rewrite(model)
        self._compiled = compiled(model, path, precision, threads, bfloat16, more)
        self.inputs: dict[str, np.dtype[Any]] = {
            name_of(port): port.get_element_type().to_dtype() for port in self._compiled.inputs
        }
        self.outputs = [name_of(port) for port in self._compiled.outputs]
        kinds = {name_of(port): port.get_element_type() for port in self._compiled.outputs}
        self.bfloat16 = frozenset(
            name for name, kind in kinds.items() if kind == self._ov.Type.bf16
        )
        self.settings: dict[str, np.dtype[Any]] = {}  # the standard flavour has none
        self._places = {name: place for place, name in enumerate(self.outputs)}
        self._taken = [port.get_element_type() for port in self._compiled.inputs]
        self._given = [(port.get_element_type(), _least(port)) for port in self._compiled.outputs]
        self._free: list[Any] = []
        self._lock = Lock()

    def run(
        self,
        feeds: Mapping[str, Any],
        numbers: Sequence[str] = (),
        kept: Sequence[str] = (),
        into: Sequence[Any] = (),
    ) -> tuple[list[NDArray[Any]], list[Any]]:
        """Run once.

        Args:
            feeds: every input by name: an array of the input's element type (an empty array may have any
                type), or a tensor that a run kept.
            numbers: outputs to return as numpy arrays.
            kept: outputs to return as tensors, for a later run.
            into: must be empty: output tensors are allocated here.

        Returns:
            The arrays of ``numbers`` and the tensors of ``kept``, in their order.
        """
        if into:
            raise ValueError("OpenVINO allocates its output tensors")
        fed = [
            tensor_of(feeds[name], kind)
            for name, kind in zip(self.inputs, self._taken, strict=True)
        ]
        given = [self._ov.Tensor(kind, shape) for kind, shape in self._given]
        request = self._take()
        try:
            for place, value in enumerate(fed):
                request.set_input_tensor(place, value)
            for place, value in enumerate(given):
                request.set_output_tensor(place, value)
            request.infer(share_outputs=True)
        finally:
            self._give_back(request)
        arrays = [given[self._places[name]].data for name in numbers]
        return arrays, [given[self._places[name]] for name in kept]

    def _take(self) -> Any:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._compiled.create_infer_request()

    def _give_back(self, request: Any) -> None:
        with self._lock:
            self._free.append(request)


def compiled(
    model: Any,
    path: Path,
    precision: Precision,
    threads: int | None,
    bfloat16: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Compile a model read from a file for the CPU; return an ``openvino.CompiledModel``.

    Other arguments and errors as for ``OpenVinoGraph``.
    """
    bfloat16 = bfloat16 or precision == "bfloat16"
    if bfloat16 and not computes_bfloat16():
        remedy = "--precision float32" if precision == "bfloat16" else "--backend openvino"
        raise CompExportError(f"{path} is to be computed in bfloat16, {NO_BFLOAT16}: use {remedy}")
    # By default OpenVINO computes in bfloat16 if the CPU can: force float32.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Every graph would pin its threads to the same cores (seen: 2026.4), even if these are busy.
        "ENABLE_CPU_PINNING": False,
        **more,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    with loading(path):
        if computed_in(precision) != precision:
            # Inputs that are rounded together: by itself OpenVINO takes 32 (seen: 2026.4),
            # which is slower.
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _group(model)
        return _core().compile_model(model, "CPU", settings)


def read_model(path: Path) -> Any:
    """Read an ``openvino.Model``; errors as for ``OpenVinoGraph``."""
    with loading(path):
        return _core().read_model(str(path))


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Name the file in OpenVINO's errors; its exceptions have no common class."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CompExportError(f"OpenVINO cannot load {path}: {reason}") from error


def _group(model: Any) -> int:
    """Inputs with one scale in all weights of 4 bits.

    Of a wider group OpenVINO (seen: 2026.4) would round none at all.
    """
    sizes = [
        target.get_node().get_output_partial_shape(0)[1].get_length()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino().Type.i4
        for target in node.output(0).get_target_inputs()
        if target.get_node().get_type_name() == "Reshape"  # [in, out] → [in / group, group, out]
    ]
    return min(sizes, default=max(GROUPS))


def tensor_of(value: Any, kind: Any) -> Any:
    """Wrap a kept tensor or an array without copying; ``kind`` is the input's element type."""
    tensor = openvino().Tensor
    if isinstance(value, tensor):
        return value
    if not value.size:  # NumPy has no bfloat16
        return tensor(kind, list(value.shape))
    # OpenVINO requires contiguous, writable memory.
    return tensor(np.require(value, requirements=["C", "W"]), shared_memory=True)


def name_of(port: Any) -> str:
    """The ONNX name of a port: fusions add names to a port, but the node keeps its own."""
    name: str = port.get_node().get_friendly_name()
    return name.removesuffix(_RESULT)


def openvino() -> ModuleType:
    """Import openvino.

    Raises:
        CompExportError: it is not installed.
    """
    try:
        import openvino as module
    except ImportError as error:
        raise CompExportError(f"openvino is not installed: {install_hint('openvino')}") from error
    return module


def openvino_version() -> str:
    """The version of the package, such as ``2026.4.1``; errors as for ``openvino``."""
    release: str = (
        openvino().__version__
    )  # with the build: 2026.4.1-22982-e213a147257-releases/2026/4
    return release.partition("-")[0]


def computes_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 natively; errors as for ``openvino``."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core() -> Any:
    return openvino().Core()


def _least(port: Any) -> list[int]:
    """The initial shape of an output: OpenVINO grows dynamic axes."""
    return [0 if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
