"""One ONNX graph in ONNX Runtime, run through IO binding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.caches import LOGITS, PAST, PRESENT
from export.artifact.manifest import REMEDY
from serve.backends.onnxruntime.providers import Device

_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


class OrtGraph:
    """A loaded graph (see ``Graph``).

    Values that stay between runs (the key/value caches) are ``OrtValue`` on the device; outputs that
    Python reads are numpy arrays.
    """

    def __init__(self, session: ort.InferenceSession, device: Device, path: Path) -> None:
        """``device`` is where kept values stay; ``path`` is named in errors."""
        self.session = session
        self.device: Device = device
        self.path = path
        self.inputs = {port.name: _dtype(port) for port in self.session.get_inputs()}
        self.settings = {
            port.name: _dtype(port) for port in self.session.get_overridable_initializers()
        }
        self.outputs = [port.name for port in self.session.get_outputs()]

    def run(
        self,
        feeds: Mapping[str, NDArray[Any] | ort.OrtValue],
        numbers: Sequence[str] = (),
        kept: Sequence[str] = (),
        into: Sequence[ort.OrtValue] = (),
    ) -> tuple[list[NDArray[Any]], list[ort.OrtValue]]:
        """See ``Graph.run``; outputs in neither ``numbers`` nor ``kept`` are not fetched.

        ``into``: where the ``kept`` outputs are written, in their order; without it they are new values.

        Raises:
            CompExportError: ONNX Runtime cannot run the graph on these values.
        """
        if any(name in self.settings for name in feeds):
            return self._run_with_settings(feeds, numbers, kept)  # without IO binding
        binding = self.session.io_binding()
        alive = _bind(binding, feeds)
        for name in numbers:
            binding.bind_output(name, "cpu")
        for name, place in zip_longest(kept, into):
            if place is None:
                binding.bind_output(name, self.device)
            else:
                binding.bind_ortvalue_output(name, place)
        with run_errors(self.path):
            self.session.run_with_iobinding(binding)
        del alive
        values = binding.get_outputs()
        arrays = [value.numpy() for value in values[: len(numbers)]]
        # Return the given values, not the outputs: those do not own the memory.
        return arrays, list(into) or values[len(numbers) :]

    def _run_with_settings(
        self,
        feeds: Mapping[str, NDArray[Any] | ort.OrtValue],
        numbers: Sequence[str],
        kept: Sequence[str],
    ) -> tuple[list[NDArray[Any]], list[ort.OrtValue]]:
        """As ``run``, with overridden initializers, which IO binding does not support."""
        arrays = {
            name: np.asarray(value, order="C")
            for name, value in feeds.items()
            if not isinstance(value, ort.OrtValue)
        }
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        values |= {name: value for name, value in feeds.items() if isinstance(value, ort.OrtValue)}
        with run_errors(self.path):
            outputs = self.session.run_with_ort_values([*numbers, *kept], values)
        return [value.numpy() for value in outputs[: len(numbers)]], outputs[len(numbers) :]


@dataclass(frozen=True)
class BoundSteps:
    """Caches and the logits, bound for many steps."""

    binding: ort.IOBinding
    logits: ort.OrtValue


class OrtSteps:
    """Decode steps that write into their caches, which are bound once instead of at every step."""

    def __init__(self, graph: OrtGraph) -> None:
        self._session, self._path = graph.session, graph.path
        widths = {port.name: port.shape[-1] for port in self._session.get_outputs()}
        self._vocabulary = widths[LOGITS]

    def begin(self, caches: Mapping[str, ort.OrtValue]) -> BoundSteps:
        """See ``Steps``: caches are read and written in place."""
        binding, batch = self._session.io_binding(), 0
        for name, cache in caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace(PAST, PRESENT), cache)
            batch = cache.shape()[0]
        empty = np.empty((batch, 1, self._vocabulary), np.float32)
        logits = ort.OrtValue.ortvalue_from_numpy(empty)
        binding.bind_ortvalue_output(LOGITS, logits)
        return BoundSteps(binding, logits)

    def step(
        self, bound: BoundSteps, feeds: Mapping[str, NDArray[Any] | ort.OrtValue]
    ) -> NDArray[np.float32]:
        """See ``Steps``."""
        alive = _bind(bound.binding, feeds)
        with run_errors(self._path):
            self._session.run_with_iobinding(bound.binding)
        del alive
        logits: NDArray[np.float32] = bound.logits.numpy().copy()  # the next step overwrites them
        return logits

    def end(self, bound: BoundSteps) -> None:
        """See ``Steps``: nothing to free."""


class OrtBuffers:
    """Caches on the CPU (see ``Buffers``)."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ort.OrtValue:
        """Allocate; pages that are never written take no memory."""
        return ort.OrtValue.ortvalue_from_numpy(np.empty(shape, dtype))

    def longer(self, cache: ort.OrtValue, held: int, places: int) -> ort.OrtValue:
        """See ``Buffers``."""
        before = cache.numpy()
        batch, heads, _, width = before.shape
        after = np.empty((batch, heads, places, width), before.dtype)
        after[:, :, :held] = before[:, :, :held]
        return ort.OrtValue.ortvalue_from_numpy(after)

    def first(self, cache: ort.OrtValue, rows: int) -> ort.OrtValue:
        """See ``Buffers``: a value on the CPU shares the memory of its array."""
        return ort.OrtValue.ortvalue_from_numpy(cache.numpy()[:rows])

    def copy(self, source: ort.OrtValue, of: int, target: ort.OrtValue, to: int, held: int) -> None:
        """See ``Buffers``."""
        target.numpy()[to, :, :held] = source.numpy()[of, :, :held]


@contextmanager
def run_errors(path: Path) -> Iterator[None]:
    """Convert ONNX Runtime's errors into one that names the graph."""
    try:
        yield
    except Exception as error:  # its exceptions have no common base but this
        reason = " ".join(str(error).split())
        raise CompExportError(f"ONNX Runtime cannot run {path}: {reason}; {REMEDY}") from error


def _bind(
    binding: ort.IOBinding, feeds: Mapping[str, NDArray[Any] | ort.OrtValue]
) -> list[NDArray[Any]]:
    """Bind inputs; return the bound arrays, which must live until the run has ended."""
    alive = []
    for name, value in feeds.items():
        if isinstance(value, ort.OrtValue):
            binding.bind_ortvalue_input(name, value)
        else:
            alive.append(np.asarray(value, order="C"))
            binding.bind_cpu_input(name, alive[-1])
    return alive


def _dtype(port: Any) -> np.dtype[Any]:
    dtype = _NUMPY_TYPES.get(port.type)
    if dtype is None:
        raise CompExportError(
            f"graph input {port.name} has type {port.type}, which is not expected"
        )
    return np.dtype(dtype)
