"""The dictionary that ``aligned`` drops rank tokens by (``comp/tokens/dictionary.py``)."""

import numpy as np
import onnx_ir as ir

from comp.checkpoints.tensor_names import ENTRIES, projection_of
from comp.plan import Part
from export.graph.builder import GraphBuilder
from export.graph.linear import cast_to_float32
from export.graph.norm import NORM_FLOOR, unit_rows
from export.weights.checkpoint import WeightSource


class TokenDictionary:
    """The dictionary for one tower in one graph; its tensors are stored once, in float32."""

    def __init__(self, graph: GraphBuilder, weights: WeightSource, part: Part) -> None:
        self._graph, self._weights = graph, weights
        self._projection = projection_of(part)
        self._made: tuple[ir.Value, ir.Value | None] | None = None

    def responses(self, states: ir.Value) -> ir.Value:
        """Cosines of ``states [B, N, D]`` with each entry, ``[B, N, T]`` float32.

        Raises:
            CompExportError: the checkpoint has no dictionary.
        """
        graph = self._graph
        entries, projection = self._tensors()
        wide = cast_to_float32(graph, states)
        if projection is not None:
            wide = graph.op("MatMul", wide, projection)
        return graph.op("MatMul", unit_rows(graph, wide), entries)

    def _tensors(self) -> tuple[ir.Value, ir.Value | None]:
        """Entries of length 1, transposed ``[P, T]``, and the projection ``[D, P]`` or ``None``."""
        if self._made is None:
            graph, weights = self._graph, self._weights
            count, width = weights.shape(ENTRIES)

            def entries() -> np.ndarray:
                values = weights.read(ENTRIES).astype(np.float32)
                length = np.linalg.norm(values, axis=1, keepdims=True)
                return (values / np.maximum(length, NORM_FLOOR)).T

            single = np.dtype(np.float32)
            first = graph.weight(ENTRIES, (width, count), entries, single)
            second = None
            if self._projection in weights.names():
                to, of = weights.shape(self._projection)
                name = self._projection
                second = graph.weight(name, (of, to), lambda: weights.read(name).T, single)
            self._made = first, second
        return self._made
