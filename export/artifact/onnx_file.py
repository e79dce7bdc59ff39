"""Read the inputs, outputs and weight locations of an ONNX file, without the package onnx.

The format is protobuf (``onnx.proto``): numbered fields of a wire type, one after another. Only messages
that lead to inputs, outputs and tensors are parsed; weights inside the file are skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from comp.errors import CompExportError

MAX_BYTES = 2**31  # protobuf's own limit
MAX_MESSAGES = 20_000_000  # parsed in one file
Dims = tuple[int | str, ...]
Value = int | memoryview

# For each message that may hold tensors: the kind of message in each of its fields.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "main", 20: "training", 25: "function"},
    "main": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DIMS, _NAME, _EXTERNAL = 1, 8, 13  # fields of a tensor
_LOCATION = b"location"


@dataclass(frozen=True)
class Port:
    """An input or output: element type (``TensorProto.DataType``), and dimensions if it has any."""

    dtype: int
    dims: Dims | None


@dataclass
class OnnxFile:
    """Ports and weight shapes of the main graph, and the external weight files of all graphs."""

    inputs: dict[str, Port] = field(default_factory=dict)
    outputs: dict[str, Port] = field(default_factory=dict)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)


def read_onnx_file(path: Path, remedy: str) -> OnnxFile:
    """Read the file of a graph, which must be a regular file; external data is not opened.

    Raises:
        CompExportError: the file is too large or not ONNX; the message ends with the remedy.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CompExportError(f"{path} has {size} bytes, more than an ONNX file can have: {remedy}")
    graphs = OnnxFile()
    waiting: list[tuple[str, memoryview]] = [("model", memoryview(path.read_bytes()))]
    entered = 0
    try:
        while waiting:
            kind, message = waiting.pop()
            entered += 1
            if entered > MAX_MESSAGES:
                raise ValueError("too many nodes")
            if kind in ("input", "output"):
                name, port = _port(message)
                (graphs.inputs if kind == "input" else graphs.outputs)[name] = port
            elif kind == "tensor":
                name, dims, locations = _tensor(message)
                graphs.weights[name] = dims
                graphs.external |= locations
            else:
                inside = _INSIDE[kind]
                waiting += reversed(
                    [
                        (inside[number], value)
                        for number, value in _fields(message)
                        if number in inside and isinstance(value, memoryview)
                    ]
                )
    except (ValueError, IndexError) as error:
        raise CompExportError(f"{path} is no ONNX file ({error}): {remedy}") from error
    return graphs


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field: an integer or bytes."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        kind, size = key & 7, 0
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if size > end - place:
            raise ValueError("it is cut off")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Decode a varint (seven bits a byte); return it and the position after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _tensor(message: memoryview) -> tuple[str, tuple[int, ...], set[str]]:
    """Name, dimensions and external data files of a tensor."""
    name, dims, locations = "", list[int](), set[str]()
    for number, value in _fields(message):
        if number == _NAME and isinstance(value, memoryview):
            name = _text(value)
        elif number == _DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == _EXTERNAL and isinstance(value, memoryview):
            entry = {n: bytes(each) for n, each in _fields(value) if isinstance(each, memoryview)}
            if entry.get(1) == _LOCATION:
                locations.add(_text(memoryview(entry.get(2, b""))))
    return name, tuple(dims), locations


def _packed(message: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(message):
        number, place = _varint(message, place)
        numbers.append(number)
    return numbers


def _port(message: memoryview) -> tuple[str, Port]:
    """Decode a ``ValueInfoProto``: 1 name, 2 type; in it 1 tensor; in that 1 element type, 2 shape."""
    name, dtype, dims = "", 0, None
    for number, value in _fields(message):
        if number == 1 and isinstance(value, memoryview):
            name = _text(value)
        if number != 2 or not isinstance(value, memoryview):
            continue
        for tensor in _inside(value, 1):
            for part, inner in _fields(tensor):
                if part == 1 and isinstance(inner, int):
                    dtype = inner
                elif part == 2 and isinstance(inner, memoryview):
                    dims = tuple(_dim(each) for each in _inside(inner, 1))
    return name, Port(dtype, dims)


def _dim(message: memoryview) -> int | str:
    """A number, or a name (possibly empty)."""
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            return value
        if number == 2 and isinstance(value, memoryview):
            return _text(value)
    return ""


def _inside(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _text(value: memoryview) -> str:
    return str(value, "utf-8")
