"""Look up rows of an embedding table directly in the memory-mapped graph file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.openvino.graph import name_of, openvino, read_model


class OpenVinoTable:
    """``embed_tokens.onnx`` (see ``Graph``), without an OpenVINO request for each token.

    Args:
            path: the graph, a single ``Gather`` from a constant; its external data is in the same folder.

    Raises:
        CompExportError: OpenVINO is not installed or refuses the graph, or the graph is not such a
            look-up.
    """

    settings: Mapping[str, np.dtype[Any]] = MappingProxyType({})

    def __init__(self, path: Path) -> None:
        self._model = read_model(path)  # owns the memory
        self.inputs = {
            name_of(port): port.get_element_type().to_dtype() for port in self._model.inputs
        }
        self.outputs = [name_of(port) for port in self._model.outputs]
        looks = [node for node in self._model.get_ops() if node.get_type_name() == "Gather"]
        table = looks[0].input_value(0).get_node() if len(looks) == 1 else None
        if table is None or table.get_type_name() != "Constant" or len(self.outputs) != 1:
            raise CompExportError(f"{path} is not an embedding look-up: export it again")
        self._rows: NDArray[Any] = table.data
        self._bfloat16 = table.get_element_type() == openvino().Type.bf16

    def run(
        self,
        feeds: Mapping[str, Any],
        numbers: Sequence[str] = (),
        kept: Sequence[str] = (),
        into: Sequence[Any] = (),
    ) -> tuple[list[NDArray[Any]], list[Any]]:
        """See ``Graph``: rows in float32."""
        assert not into
        (ids,) = feeds.values()
        rows = self._rows[ids]
        if self._bfloat16:  # the upper half of a float32
            rows = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        values = rows.astype(np.float32, copy=False)
        return [values for _ in numbers], [values for _ in kept]
