"""Decode steps in OpenVINO: the decoder with its caches as states, which grow where they lie.

The graph as it was exported takes the caches and gives longer ones, so that every step writes all of them
anew. Here inputs and outputs of caches become states of a request, and attention one operator, which
OpenVINO fuses with them: a step then writes one token. It reads prompts more slowly than the graph as it
was exported, and so makes steps alone.
"""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.cache import LOGITS, PAST, PRESENT
from export.manifest import Precision
from export.openvino_graph import compiled, name_of, openvino, tensor_of

CACHES: dict[Precision, str] = {"bfloat16": "bf16", "float16": "f16"}  # otherwise as computed


class OpenVinoSteps:
    """``decoder_model.onnx`` of the standard flavour, for steps after a prefill.

    Requests may come from several threads, each with what ``begin`` gave it.

    Args:
        path: of the graph.
        precision: of the artifact.
        threads: of one step; ``None`` leaves them to OpenVINO.

    Raises:
        CompExportError: as ``OpenVinoGraph``.
    """

    def __init__(self, path: Path, precision: Precision, threads: int | None = None) -> None:
        # By itself OpenVINO would round the caches to 8 bits.
        settings = {"KV_CACHE_PRECISION": CACHES.get(precision, "f32")}
        self._compiled = compiled(path, precision, threads, settings, caches_as_states)
        self._inputs = [name_of(port) for port in self._compiled.inputs]
        self._kinds = [port.get_element_type() for port in self._compiled.inputs]
        self._free: list[Any] = []
        self._lock = Lock()

    def begin(self, caches: Mapping[str, Any]) -> Any:
        """What steps after a prefill go on with, given its caches by input name ``[B, H, P, hd]``."""
        with self._lock:
            request = self._free.pop() if self._free else None
        request = request or self._compiled.create_infer_request()
        for state in request.query_state():
            cache = caches[state.name]
            state.state = (
                cache if isinstance(cache, openvino().Tensor) else openvino().Tensor(cache)
            )
        return request

    def step(self, request: Any, feeds: Mapping[str, Any]) -> NDArray[np.float32]:
        """One token of each sequence: the other inputs by name, to the logits ``[B, 1, V]``."""
        for place, (name, kind) in enumerate(zip(self._inputs, self._kinds, strict=True)):
            request.set_input_tensor(place, tensor_of(feeds[name], kind))
        request.infer(share_outputs=True)
        logits: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        return logits

    def end(self, request: Any) -> None:
        """Take back what ``begin`` gave: another answer begins with it."""
        with self._lock:
            self._free.append(request)


def caches_as_states(model: Any) -> None:
    """Make the caches of an ``openvino.Model`` its states; of its outputs the logits stay."""
    from openvino import op as operator
    from openvino import opset13 as op
    from openvino.op.util import Variable, VariableInfo

    inputs = {name_of(port): port for port in model.inputs}
    outputs = {name_of(port): port for port in model.outputs}
    first = op.constant(np.array([0]))
    shape = op.shape_of(inputs["inputs_embeds"], output_type="i64")
    batch = op.gather(shape, first, op.constant(np.int64(0)))
    # What beam search would reorder. OpenVINO fuses a state with attention only behind such a gather.
    count = op.squeeze(batch, first)
    rows = op.range(op.constant(np.int64(0)), count, op.constant(np.int64(1)), "i32")
    for name, past in inputs.items():
        if not name.startswith(PAST):
            continue
        _, heads, _, width = past.get_partial_shape()
        about = VariableInfo()
        about.variable_id, about.data_type = name, past.get_element_type()
        about.data_shape = past.get_partial_shape()
        variable = Variable(about)
        model.add_variables([variable])
        sizes = op.constant(np.array([heads.get_length(), 0, width.get_length()]))
        zero = op.convert(op.constant(np.float32(0)), about.data_type)
        empty = op.broadcast(zero, op.concat([batch, sizes], 0))
        held = op.gather(operator.read_value(empty, variable), rows, op.constant(np.int64(0)))
        for consumer in past.get_target_inputs():
            consumer.replace_source_output(held.output(0))
        present = outputs[PRESENT + name.removeprefix(PAST)].get_node()
        model.add_sinks([operator.assign(present.input_value(0).get_node(), variable)])
        model.remove_parameter(past.get_node())
    for name, port in outputs.items():
        if name != LOGITS:
            model.remove_result(port.get_node())
    for softmax in [node for node in model.get_ops() if node.get_type_name() == "Softmax"]:
        _join_attention(softmax)
    model.validate_nodes_and_infer_types()


def _join_attention(softmax: Any) -> None:
    """One operator in place of ``softmax(q kᵀ + mask) v``; anything else stays."""
    from openvino import opset13 as op

    users = list(softmax.output(0).get_target_inputs())
    mixed, added = users[0].get_node(), softmax.input_value(0).get_node()
    scores = added.input_value(0).get_node()
    if len(users) != 1 or (mixed.get_type_name(), added.get_type_name()) != ("MatMul", "Add"):
        return
    if scores.get_type_name() != "MatMul":
        return
    keys = scores.input_value(1).get_node()
    if keys.get_type_name() != "Transpose":
        return
    mask = added.input_value(1)
    one = op.convert(
        op.constant(np.float32(1)), mask.get_element_type()
    )  # queries are scaled already
    joined = op.scaled_dot_product_attention(
        scores.input_value(0), keys.input_value(0), mixed.input_value(1), mask, one, causal=False
    )
    mixed.output(0).replace(joined.output(0))
