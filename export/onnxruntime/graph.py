"""Run a graph in plain ONNX Runtime, for verification and timing."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from comp.errors import CompExportError
from comp.utils.install import install_hint

SESSION_ERRORS_ONLY = 3
CPU = ("CPUExecutionProvider",)
CUDA = "CUDAExecutionProvider"
NO_BFLOAT16 = "ONNX Runtime does not compute bfloat16 on a CPU"


class NumpyGraph(Protocol):
    """A loaded graph with numpy arrays by name as inputs and outputs."""

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by its name."""
        ...


LoadGraph: TypeAlias = Callable[[Path], NumpyGraph]


class OrtGraph:
    """A graph in ONNX Runtime (see ``NumpyGraph``).

    Args:
        path: the ``.onnx`` file.
        providers: ONNX Runtime execution providers.
        threads: threads of one operator; 0 takes one for each core.

    Raises:
        CompExportError: ONNX Runtime is missing, or refuses the graph.
    """

    def __init__(self, path: Path, providers: tuple[str, ...] = CPU, threads: int = 0) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise CompExportError(
                f"onnxruntime is not installed: {install_hint('serve')}"
            ) from error
        options = ort.SessionOptions()
        options.log_severity_level = SESSION_ERRORS_ONLY
        options.intra_op_num_threads = threads
        # As `serve` sets them: idle threads of one graph must not take the cores from the next.
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own classes have no public base
            reason = str(error).splitlines()[0]
            raise CompExportError(f"ONNX Runtime cannot load {path}: {reason}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]
        self._device: Literal["cpu", "cuda"] = "cuda" if CUDA in providers else "cpu"
        if self._device == "cuda" and CUDA not in self._session.get_providers():
            raise CompExportError(
                f"ONNX Runtime has {CUDA} but cannot start it (a driver, CUDA or cuDNN library is "
                "missing or of another version): use --device cpu"
            )

    def bound(self, feeds: dict[str, np.ndarray]) -> Callable[[], None]:
        """Return a run for timing whose inputs and outputs stay on the device."""
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array, self._device, 0))
        for name in self.outputs:
            binding.bind_output(name, self._device)

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by its name."""
        return dict(zip(self.outputs, self._session.run(None, feeds), strict=True))
