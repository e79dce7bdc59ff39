"""A graph in plain ONNX Runtime, for proving it against torch; ``serve`` is what answers users."""

from pathlib import Path

import numpy as np

from comp.errors import CompExportError

SESSION_ERRORS_ONLY = 3
CPU = ("CPUExecutionProvider",)
NO_BFLOAT16 = "ONNX Runtime does not compute bfloat16 on a CPU"


class OrtGraph:
    """A loaded graph; runs take and give numpy arrays by name.

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
                "onnxruntime is not installed: pip install 'comp-export[serve]'"
            ) from error
        options = ort.SessionOptions()
        options.log_severity_level = SESSION_ERRORS_ONLY
        options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own classes have no public base
            reason = str(error).splitlines()[0]
            raise CompExportError(f"ONNX Runtime cannot load {path}: {reason}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by its name."""
        return dict(zip(self.outputs, self._session.run(None, feeds), strict=True))
