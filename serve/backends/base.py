"""What the engine asks of whatever runs the graphs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from export.artifact.llava_manifest import LlavaManifest

BackendName: TypeAlias = Literal["onnxruntime", "openvino", "openvino-bfloat16", "tensorrt"]
ProviderChoice: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class RequestSize:
    """Sizes that a request will reach."""

    batch: int
    images: int  # of one prompt
    text_tokens: int  # of one prompt
    new_tokens: int


@dataclass(frozen=True)
class Prefill:
    """A prefill's outcome: ``logits [B, V]`` of the last token, kept places ``[B, k]``.

    ``state`` is handed to ``step`` and, when the answer is done, to ``release``. ``selected [I, k]`` are
    those of the tower's image tokens that stayed as they are, where not all did.
    """

    logits: NDArray[np.float32]
    kept: dict[int, NDArray[np.int64]]
    state: Any
    vision_ms: float
    selected: NDArray[np.int64] | None = None


class Backend(Protocol):
    """Runs the graphs of one model; requests may come from several threads.

    Attributes:
        name: of the backend.
        device: ``cpu`` or ``cuda``.
        provider: ONNX Runtime's execution provider, or the version of OpenVINO or TensorRT.
        manifest: of the ONNX artifact that runs, or that the engines were built from; ``files``
            are those that run.
        tokenizer: ``tokenizer.json``.
    """

    name: BackendName
    device: Literal["cpu", "cuda"]
    provider: str
    manifest: LlavaManifest
    tokenizer: Path

    def check(self, size: RequestSize, keep_factor: float) -> None:
        """Raise ``CompExportError`` for a request that cannot be run."""
        ...

    def prefill(
        self,
        pixels: NDArray[np.float32] | None,
        ids: NDArray[np.int64],
        vision: NDArray[np.int64],
        text: NDArray[np.int64],
        keep_factor: float,
    ) -> Prefill:
        """Read prompts of one length.

        Args:
            pixels: ``[I, C, S, S]``, the images of all prompts in turn, or none.
            ids: ``[B, N]``, image tokens expanded.
            vision: places of image tokens ``[B, Nv]``, ascending.
            text: places of text tokens ``[B, Nt]``, ascending; with ``vision`` all of ``0..N-1``.
            keep_factor: multiplies the keep ratios.
        """
        ...

    def step(self, tokens: Sequence[int], state: Any) -> tuple[NDArray[np.float32], Any]:
        """One token a sequence: ``logits [B, V]`` and the state after it.

        The state that went in is used up: its caches may have been written in place.
        """
        ...

    def release(self, state: Any) -> None:
        """Give back what a request held on the device."""
        ...


class Graph(Protocol):
    """One loaded ONNX graph; runs may come from several threads.

    Attributes:
        inputs: element types by name.
        settings: element types of inputs that have a value of their own and may be left out.
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
            numbers: outputs wanted as numpy arrays.
            kept: outputs that stay on the device, for a later run.
            into: of a runtime with ``Buffers``: where ``kept`` ones are written, in their order.

        Returns:
            The arrays of ``numbers`` and the values of ``kept``, in their order.
        """
        ...


class Buffers(Protocol):
    """Memory for caches that a graph writes in place, ``[B, H, S, hd]``."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """A cache that holds nothing yet; its ``shape()`` may have more places."""
        ...

    def longer(self, cache: Any, held: int, places: int) -> Any:
        """A cache of so many places with the ``held`` tokens of another."""
        ...


class Steps(Protocol):
    """What makes decode steps faster than ``Graph.run``: caches are taken once, for many steps."""

    def begin(self, caches: Mapping[str, Any]) -> Any:
        """What steps go on with, given caches by input name, which they write into."""
        ...

    def step(self, held: Any, feeds: Mapping[str, Any]) -> NDArray[np.float32]:
        """One token of each sequence: the inputs beside the caches, to the logits ``[B, 1, V]``."""
        ...

    def end(self, held: Any) -> None:
        """Take back what ``begin`` gave."""
        ...


class Runtime(Protocol):
    """Loads the graphs of one ONNX artifact; attributes as of ``Backend``."""

    @property
    def name(self) -> BackendName: ...

    @property
    def device(self) -> Literal["cpu", "cuda"]: ...

    @property
    def label(self) -> str:
        """What ``Backend.provider`` says."""
        ...

    @property
    def buffers(self) -> Buffers | None:
        """For the decoder's caches; none where these grow."""
        ...

    def graph(self, path: Path) -> Graph:
        """Load a graph; its external data lies beside it.

        Raises:
            CompExportError: it cannot be loaded, or what should run it cannot be started.
        """
        ...

    def decoder(self, path: Path) -> tuple[Graph, Steps | None]:
        """Load a decoder, and what makes its steps where something is faster; errors as ``graph``."""
        ...

    def table(self, path: Path) -> Graph:
        """As ``graph``, of a look-up in a table: more than one thread only costs there."""
        ...
