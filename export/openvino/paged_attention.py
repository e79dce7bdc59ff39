"""Rewrite a decoder's attention for OpenVINO: one operator with paged caches, and fused rotations.

The exported graph has both in operators that every runtime knows.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comp.errors import CompExportError
from comp.utils.install import install_hint
from export.artifact.caches import CACHE_LENGTHS, PAST, PRESENT
from export.openvino.decode_step import KEPT
from export.openvino.graph import name_of, openvino

PAGE = 32  # tokens per page, as OpenVINO's operator requires


def attention_in_pages(model: Any, bfloat16: bool = False) -> None:
    """Replace every attention of an ``openvino.Model`` by paged attention; caches become inputs only.

    Args:
        model: the model of ``decoder_model.onnx``; changed in place.
        bfloat16: attend in bfloat16. With that hint OpenVINO keeps in float32 the operations that the
            ranking of tokens depends on, and would read bfloat16 caches as float32 there.

    Raises:
        CompExportError: another release exported the graph, or this OpenVINO lacks the operator.
    """
    from openvino import opset13 as op

    ov = openvino()
    inputs = {name_of(port): port for port in model.inputs}
    outputs = {name_of(port): port for port in model.outputs}
    lengths = _parameter(CACHE_LENGTHS, ov.Type.i64, [-1, -1])
    parameters, drops = [lengths], [name for name in outputs if name.startswith(KEPT)]
    segment, places = -1, None
    tables: dict[str, Any] = {}
    for layer in range(sum(name.startswith(PRESENT) for name in outputs) // 2):
        plain = _Block.of(outputs, layer)
        for port in (plain.query, plain.key):
            _join_rotation(port.get_node(), tables)
        block = _Block.of(outputs, layer)
        # KV_CACHE_PRECISION sets their type: a type given here may add a conversion, so writes are lost.
        key, value = (
            _parameter(f"{PAST}{layer}.{part}", ov.Type.dynamic, block.cache_shape)
            for part in ("key", "value")
        )
        parameters += [key, value]
        passed = sum(int(name.removeprefix(KEPT)) <= layer for name in drops)
        if places is None or passed != segment:
            segment, places = passed, _Places.of(lengths, passed, block.query, key)
        scale = op.constant(np.float32(block.scale))
        kind = block.query.get_element_type()
        within = ov.Type.bf16 if bfloat16 else kind
        tokens = [op.convert(node, within) for node in block.flat()]
        mixed = _paged([*tokens, key, value], places, scale)
        _describe(mixed, block.cache_shape[1], block.cache_shape[3])
        converted = op.convert(mixed.output(0), kind)
        joined = op.reshape(converted, places.shape, special_zero=False)
        block.joined.replace(joined.output(0))
    for name, port in outputs.items():
        if name.startswith(PRESENT):
            model.remove_result(port.get_node())
    for name, port in inputs.items():
        if name.startswith(PAST):
            model.remove_parameter(port.get_node())
    model.add_parameters(parameters)
    model.validate_nodes_and_infer_types()


@dataclass(frozen=True)
class _Block:
    """The attention of one block as it was exported.

    Attributes:
        query, key, value: ``[B, N, H, hd]``, of the present tokens; query and key are rotated.
        joined: the heads' outputs ``[B, N, H·hd]``.
        scale: scale of the logits, if the queries are not scaled yet.
        cache_shape: shape of its pages, ``[-1, Hkv, PAGE, hd]``.
    """

    query: Any
    key: Any
    value: Any
    joined: Any
    scale: float
    cache_shape: list[int]

    @classmethod
    def of(cls, outputs: Mapping[str, Any], layer: int) -> "_Block":
        keys, values = (
            _back(outputs[f"{PRESENT}{layer}.{part}"].get_node(), "Concat")
            for part in ("key", "value")
        )
        core = _ahead(values, "MatMul", "ScaledDotProductAttention")
        _, heads, _, width = keys.get_output_partial_shape(0)
        fused = core.get_type_name() == "ScaledDotProductAttention"
        # softmax(q kᵀ + mask) v, or one operator
        queries = core if fused else _back(_back(core, "Softmax"), "MatMul")
        return cls(
            query=_back(queries, "Transpose").input_value(0),
            key=_back(keys, "Transpose", 1).input_value(0),
            value=_back(values, "Transpose", 1).input_value(0),
            joined=_ahead(core, "Reshape").output(0),
            scale=width.get_length() ** -0.5 if fused else 1.0,
            cache_shape=[-1, heads.get_length(), PAGE, width.get_length()],
        )

    def flat(self) -> list[Any]:
        """Query, key and value as ``[B·N, H·hd]``."""
        from openvino import opset13 as op

        tokens = []
        for value in (self.query, self.key, self.value):
            _, _, heads, width = value.get_partial_shape()
            wanted = op.constant(np.array([-1, heads.get_length() * width.get_length()]))
            tokens.append(op.reshape(value, wanted, special_zero=False))
        return tokens


@dataclass(frozen=True)
class _Places:
    """The cache positions that the blocks between two drop places use; all ``int32`` but ``shape``.

    Attributes:
        past: tokens in the caches ``[B]``.
        begins: offsets of the sequences among the present tokens ``[B + 1]``.
        pages: page indices of all sequences, in turn.
        page_begins: offsets of the sequences among the pages ``[B + 1]``.
        longest: tokens of the longest sequence, with the present ones; a scalar.
        shape: ``[B, N, -1]``.
    """

    past: Any
    begins: Any
    pages: Any
    page_begins: Any
    longest: Any
    shape: Any

    @classmethod
    def of(cls, lengths: Any, segment: int, query: Any, pages: Any) -> "_Places":
        """Return the places of row ``segment`` of the lengths.

        ``query [B, N, H, hd]`` and ``pages`` are of one block.
        """
        from openvino import opset13 as op

        first = op.constant(np.int64(0))
        zero, one = (op.constant(np.int32(number)) for number in (0, 1))
        sizes = op.shape_of(query, output_type="i32")
        batch, tokens = (op.gather(sizes, op.constant(np.int64(axis)), first) for axis in (0, 1))
        count = op.gather(op.shape_of(pages, output_type="i32"), first, first)
        past = op.convert(op.gather(lengths, op.constant(np.int64(segment)), first), "i32")
        sequences = op.range(zero, op.add(batch, one), one, "i32")
        leading = op.gather(sizes, op.constant(np.array([0, 1])), first)
        return cls(
            past=past,
            begins=op.multiply(sequences, tokens),
            pages=op.range(zero, count, one, "i32"),
            page_begins=op.multiply(sequences, op.divide(count, batch)),
            longest=op.add(op.reduce_max(past, first, keep_dims=False), tokens),
            shape=op.concat([leading, op.constant(np.array([-1], np.int32))], 0),
        )


def _paged(tensors: Sequence[Any], places: _Places, scale: Any) -> Any:
    """OpenVINO's operator of query, key, value and both caches; its other features are switched off."""
    from openvino import op as operator
    from openvino import opset13 as op

    def nothing(kind: Any) -> Any:
        return op.constant(np.zeros(0, kind))

    if not hasattr(operator, "_PagedAttentionExtension"):
        raise CompExportError(
            f"openvino {openvino().__version__} has no attention over pages: "
            f"{install_hint('openvino')} for one that has"
        )
    off = op.constant(np.int32(0))
    inputs = [
        *tensors,
        places.past,
        places.begins,
        places.pages,
        places.page_begins,
        scale,
        off,  # sliding window
        nothing(np.float32),  # slopes of ALiBi
        places.longest,
        nothing(np.int32),  # window of scores
        *(nothing(np.int32), nothing(np.int32), nothing(np.float32)),  # rotation of pages
        *(nothing(np.float32), off, off),  # sparse attention: threshold, block, stride
        nothing(np.float32),  # sinks
        *(off, nothing(np.int32), nothing(np.int32), nothing(np.int32)),  # eviction
        nothing(np.int32),  # kinds of tokens
        *(nothing(np.uint8), nothing(np.int32)),  # bias between queries
    ]
    return operator._PagedAttentionExtension([node.output(0) for node in inputs])


def _describe(mixed: Any, heads: int, width: int) -> None:
    """Set the runtime info that OpenVINO's CPU plugin reads from the operator."""
    about = mixed.get_rt_info()
    for part in "kv":
        about[f"num_{part}_heads"], about[f"{part}_head_size"] = heads, width


def _join_rotation(node: Any, tables: dict[str, Any]) -> None:
    """Rewrite a rotation into the pattern that OpenVINO fuses; leave anything else unchanged.

    Args:
        node: joins both halves of each rotated head.
        tables: angle tables for whole heads, by the name of the node with those of half heads.
    """
    from openvino import opset13 as op

    if node.get_type_name() == "Multiply":  # by the scale of the logits
        node = node.input_value(0).get_node()
    parts = [node.input_value(place).get_node() for place in range(node.get_input_size())]
    if [part.get_type_name() for part in (node, *parts)] != ["Concat", "Subtract", "Add"]:
        return
    left_cos, right_sin = (parts[0].input_value(place).get_node() for place in (0, 1))
    halves, half = (
        left_cos.input_value(0).get_node(),
        node.get_output_partial_shape(0)[3].get_length() // 2,
    )
    whole, wide = halves.input_value(0), []
    for product in (left_cos, right_sin):
        angles = product.input_value(1)
        name = angles.get_node().get_friendly_name()
        if name not in tables:
            tables[name] = op.concat([angles, angles], -1)
        wide.append(tables[name])
    one, last = op.constant(np.array([1])), op.constant(np.array([3]))
    places = (0, half, np.iinfo(np.int64).max)
    left, right = (
        op.slice(whole, *(op.constant(np.array([place])) for place in ends), one, last)
        for ends in itertools.pairwise(places)
    )
    minus = op.constant(np.full((1, 1, 1, 1), -1, np.float32), whole.get_element_type())
    swapped = op.concat([op.multiply(right, minus), left], -1)
    rotated = op.add(op.multiply(whole, wide[0]), op.multiply(swapped, wide[1]))
    node.output(0).replace(rotated.output(0))


def _parameter(name: str, kind: Any, shape: list[int]) -> Any:
    from openvino import opset13 as op

    parameter = op.parameter(openvino().PartialShape(shape), kind)
    parameter.set_friendly_name(name)
    parameter.output(0).set_names({name})
    return parameter


def _back(node: Any, kind: str, place: int = 0) -> Any:
    """The nearest operator of a kind before a node: through input ``place``, then through first inputs."""
    current = node.input_value(place).get_node()
    while current.get_type_name() != kind:
        if not current.inputs():
            raise _unknown(node, kind)
        current = current.input_value(0).get_node()
    return current


def _ahead(node: Any, *kinds: str) -> Any:
    """The nearest operator of these kinds after a node."""
    seen = [node]
    for current in seen:  # grows
        for target in current.output(0).get_target_inputs():
            user = target.get_node()
            if user.get_type_name() in kinds:
                return user
            seen.append(user)
    raise _unknown(node, " or ".join(kinds))


def _unknown(node: Any, kind: str) -> CompExportError:
    return CompExportError(
        f"attention of {node.get_friendly_name()} has no {kind} where it was expected: another release "
        "exported the graph; export it again"
    )
