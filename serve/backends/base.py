"""The interface between engines and the backends that run graphs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from export.artifact.llava_manifest import LlavaManifest
from serve.backends.seen_images import SeenImages
from serve.backends.seen_prefixes import SeenPrefixes

BackendName: TypeAlias = Literal["onnxruntime", "openvino", "openvino-bfloat16", "tensorrt"]
ProviderChoice: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class RequestSize:
    """The sizes that a request will reach."""

    batch: int
    images: int  # of one prompt
    text_tokens: int  # of one prompt
    new_tokens: int


@dataclass(frozen=True)
class Prefill:
    """The results of a prefill: ``logits [B, V]`` of the last token, kept positions ``[B, k]``.

    ``state`` is passed to ``step`` and, after the answer, to ``release``. ``selected [I, k]`` are the
    selected tokens of the vision tower, if it selects. ``cached_tokens`` of the prompt were not read again.
    """

    logits: NDArray[np.float32]
    kept: dict[int, NDArray[np.int64]]
    state: Any
    vision_ms: float
    selected: NDArray[np.int64] | None = None
    cached_tokens: int = 0


class Backend(Protocol):
    """Runs the graphs of one model; requests may come from several threads.

    Attributes:
        name: name of the backend.
        device: ``cpu`` or ``cuda``.
        provider: ONNX Runtime's execution provider, or the version of OpenVINO or TensorRT.
        manifest: manifest of the ONNX artifact that runs, or that the engines were built from; ``files``
            lists the files that run.
        tokenizer: ``tokenizer.json``.
    """

    name: BackendName
    device: Literal["cpu", "cuda"]
    provider: str
    manifest: LlavaManifest
    tokenizer: Path

    def check(self, size: RequestSize, keep_factor: float) -> None:
        """Raise ``CompExportError`` if a request of this size cannot run."""
        ...

    def prefill(
        self,
        pixels: NDArray[np.float32] | None,
        ids: NDArray[np.int64],
        vision: NDArray[np.int64],
        text: NDArray[np.int64],
        keep_factor: float,
    ) -> Prefill:
        """Run prompts of one length.

        Args:
            pixels: ``[I, C, S, S]``, the images of all prompts in turn, or none.
            ids: ``[B, N]``, image tokens expanded.
            vision: positions of image tokens ``[B, Nv]``, ascending.
            text: positions of text tokens ``[B, Nt]``, ascending; together with ``vision`` all of
                ``0..N-1``.
            keep_factor: multiplies the keep ratios.
        """
        ...

    def step(self, tokens: Sequence[int], state: Any) -> tuple[NDArray[np.float32], Any]:
        """Run one token per sequence: ``logits [B, V]`` and the next state.

        The given state must not be used again: its caches may be written in place.
        """
        ...

    def release(self, state: Any) -> None:
        """Free what a request holds on the device."""
        ...

    def keep_images(self, max_bytes: int) -> SeenImages | None:
        """Keep the features of images from now on; None if this backend computes them with the prompt."""
        ...

    def keep_prefixes(self, max_bytes: int) -> SeenPrefixes | None:
        """Keep the caches of prompts from now on, for prompts that begin alike.

        None if this backend cannot begin in the middle of a prompt, or if the artifact drops tokens: which
        ones it keeps depends on all words of the prompt.
        """
        ...

    def rows(self, rows: int, places: int) -> "Rows | None":
        """Rows for answers that run together; None if this backend has none.

        Args:
            rows: most answers at the same time.
            places: most tokens of one answer, with its prompt.
        """
        ...


class Rows(Protocol):
    """Caches of answers that run together though they began at different times.

    Attributes:
        rows, places: as given to ``Backend.rows``.
        running: number of answers.
    """

    rows: int
    places: int
    running: int

    def join(self, state: Any, of: int = 0) -> int:
        """Take over the caches of prompt ``of`` of a batch; return its row."""
        ...

    def leave(self, row: int) -> int:
        """End the answer of a row; the last row, which is returned, takes its place."""
        ...

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run one token of each running row: ``logits [B, V]``."""
        ...


class Graph(Protocol):
    """One loaded ONNX graph; runs may come from several threads.

    Attributes:
        inputs: element types by name.
        settings: element types of optional inputs, which have a default.
        outputs: names.
    """

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]: ...

    @property
    def settings(self) -> Mapping[str, np.dtype[Any]]: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    def run(
        self,
        feeds: Mapping[str, Any],
        numbers: Sequence[str] = (),
        kept: Sequence[str] = (),
        into: Sequence[Any] = (),
    ) -> tuple[list[NDArray[Any]], list[Any]]:
        """Run once.

        Args:
            feeds: inputs by name: arrays of the input's element type, or values that a run kept.
            numbers: outputs to return as numpy arrays.
            kept: outputs to leave on the device for a later run.
            into: for a runtime with ``Buffers``: where the ``kept`` outputs are written, in their order.

        Returns:
            The arrays of ``numbers`` and the values of ``kept``, in their order.
        """
        ...


class Buffers(Protocol):
    """Memory for caches that a graph writes in place, ``[B, H, S, hd]``."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Allocate an empty cache; its ``shape()`` may have more places."""
        ...

    def longer(self, cache: Any, held: int, places: int) -> Any:
        """Allocate a cache with ``places`` places that contains the ``held`` tokens of another."""
        ...


@runtime_checkable
class RowBuffers(Protocol):
    """Caches whose rows can be taken and copied one by one: on top of ``Buffers``."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """See ``Buffers``."""
        ...

    def first(self, cache: Any, rows: int) -> Any:
        """The first rows of a cache, in the same memory."""
        ...

    def copy(self, source: Any, of: int, target: Any, to: int, held: int) -> None:
        """Copy the ``held`` tokens of row ``of`` of a cache to row ``to`` of another, or of itself."""
        ...


class Steps(Protocol):
    """Decode steps that are faster than ``Graph.run``: caches are bound once for many steps."""

    def begin(self, caches: Mapping[str, Any]) -> Any:
        """Bind caches, given by input name, for steps that write into them; return the binding."""
        ...

    def step(self, held: Any, feeds: Mapping[str, Any]) -> NDArray[np.float32]:
        """Run one token of each sequence: inputs other than caches, to logits ``[B, 1, V]``."""
        ...

    def end(self, held: Any) -> None:
        """Return the binding of ``begin``."""
        ...


class Runtime(Protocol):
    """Loads the graphs of one ONNX artifact; attributes as in ``Backend``."""

    @property
    def name(self) -> BackendName: ...

    @property
    def device(self) -> Literal["cpu", "cuda"]: ...

    @property
    def label(self) -> str:
        """The value of ``Backend.provider``."""
        ...

    @property
    def buffers(self) -> Buffers | None:
        """The buffers of the decoder's caches; ``None`` if the graph returns longer caches instead."""
        ...

    def graph(self, path: Path) -> Graph:
        """Load a graph; its external data is in the same folder.

        Raises:
            CompExportError: it cannot be loaded, or its provider cannot be started.
        """
        ...

    def decoder(self, path: Path) -> tuple[Graph, Steps | None]:
        """Load a decoder, and its ``Steps`` if the runtime has some; errors as for ``graph``."""
        ...

    def table(self, path: Path) -> Graph:
        """As ``graph``, for an embedding look-up: more than one thread would only cost time there."""
        ...
