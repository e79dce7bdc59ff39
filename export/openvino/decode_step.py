"""Decode steps in OpenVINO: requests that are bound to caches once, and a graph for a single token.

A step drops no tokens, and all its shapes are known. The prompt graph can run steps too, but for a step it
spends about a third of the time of reading its weights on inferring shapes and on ranking the single token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact.caches import CACHE_LENGTHS, LOGITS
from export.openvino.graph import name_of, openvino, tensor_of

KEPT = "kept."  # prefix of the outputs with kept positions
_SPLIT = ("vision_positions", "text_positions")  # inputs that only drops read


class StepGraph:
    """Runs steps of one compiled decoder with paged caches.

    Args:
        compiled: an ``openvino.CompiledModel``.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._inputs = [(name_of(port), port.get_element_type()) for port in compiled.inputs]
        self._logits = [name_of(port) for port in compiled.outputs].index(LOGITS)
        self._free: list[Bound] = []  # not in use
        self._lock = Lock()

    def begin(self, caches: Mapping[str, Any]) -> "Bound":
        """Return a request for steps that read and write these tensors, given by input name."""
        with self._lock:
            bound = self._free.pop() if self._free else None
        bound = bound or Bound(self, self._compiled.create_infer_request(), {})
        for place, (name, _) in enumerate(self._inputs):
            if name in caches:
                bound.request.set_input_tensor(place, caches[name])
        return bound

    def step(self, bound: "Bound", feeds: Mapping[str, Any]) -> NDArray[np.float32]:
        """Run one token of each sequence: inputs other than caches, to logits ``[B, 1, V]``."""
        for place, (name, kind) in enumerate(self._inputs):
            if name in feeds:
                bound.feed(place, name, feeds[name], kind)
        bound.request.infer(share_outputs=True)
        logits: NDArray[np.float32] = bound.request.get_output_tensor(self._logits).data.copy()
        return logits

    def end(self, bound: "Bound") -> None:
        """Return the request of ``begin`` to the pool."""
        with self._lock:
            self._free.append(bound)


@dataclass(frozen=True)
class Bound:
    """A request for steps of a graph, and its small inputs, whose memory is reused from step to step."""

    graph: StepGraph
    request: Any
    inputs: dict[str, NDArray[Any]]

    def feed(self, place: int, name: str, value: NDArray[Any], kind: Any) -> None:
        """Set input ``place``, of this name and element type."""
        buffer = self.inputs.get(name)
        if buffer is None or buffer.shape != value.shape:
            buffer = self.inputs[name] = np.array(value)
            self.request.set_input_tensor(place, tensor_of(buffer, kind))
        else:
            buffer[...] = value


def for_one_token(model: Any) -> None:
    """Specialise a model for steps of one sequence: its single token is never dropped.

    Args:
        model: an ``openvino.Model`` of a decoder with paged caches (``attention_in_pages``); changed in
            place.
    """
    for port in model.outputs:
        if name_of(port).startswith(KEPT):
            model.remove_result(port.get_node())
    for node in model.get_ordered_ops():  # with one token, a drop keeps everything
        if node.get_type_name() == "GatherND" or _is_of_positions(node):
            node.output(0).replace(_gathered(node))
    shapes = {}
    for port in model.inputs:
        name, (first, *_, last) = name_of(port), port.get_partial_shape()
        if name in _SPLIT:
            model.remove_parameter(port.get_node())
        elif name == "inputs_embeds":
            shapes[name] = [1, 1, last]
        elif name == "position_ids":
            shapes[name] = [1, 1]
        elif name == CACHE_LENGTHS:
            shapes[name] = [first, 1]
    model.reshape({name: openvino().PartialShape(shape) for name, shape in shapes.items()})


def weight_bytes(model: Any) -> int:
    """Bytes of all constants of an ``openvino.Model``."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return sum(node.get_byte_size() for node in constants)


def _is_of_positions(node: Any) -> bool:
    """Whether a node gathers token positions; earlier gathers of them are replaced already."""
    if node.get_type_name() != "GatherElements":
        return False
    return bool(node.input_value(0).get_node().get_friendly_name() == "position_ids")


def _gathered(node: Any) -> Any:
    """The source that a node gathers from, without the repetition that OpenVINO adds for batches."""
    source = node.input_value(0)
    repeated = source.get_node().get_type_name() == "Broadcast"
    return source.get_node().input_value(0) if repeated else source
