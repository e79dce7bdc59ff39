"""A decoder in OpenVINO whose caches lie in pages, written where they are.

The graph as it was exported takes the caches and gives longer ones, so that every step would write all of
them anew. Here attention and caches are one operator, as in OpenVINO's own server of language models: it
writes the present tokens into pages that are given, and reads prompts faster too. The same compiled graph
serves prompts and steps, so that weights are held once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.cache import LOGITS
from export.manifest import Precision
from export.openvino_attention import PAGE, attention_in_pages
from export.openvino_graph import OpenVinoGraph, openvino, tensor_of


@dataclass(frozen=True)
class Pages:
    """One cache of B sequences: ``tensor [B·pages, H, PAGE, hd]``, those of a sequence in one piece."""

    tensor: Any
    sizes: tuple[int, int, int, int]

    def shape(self) -> tuple[int, int, int, int]:
        """``[B, H, places, hd]``, as of a cache in one piece."""
        return self.sizes


class PageBuffers:
    """Makes caches (see ``Buffers``) for a ``PagedDecoder`` of the same arguments."""

    def __init__(self, precision: Precision, bfloat16: bool = False) -> None:
        self._kind = _kind_of_caches(precision, bfloat16)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Pages:
        """For ``[B, H, S, hd]``; pages that are never written take no memory."""
        del dtype  # NumPy has no bfloat16
        batch, heads, places, width = shape
        ov = openvino()
        pages = -(-places // PAGE)
        kind = getattr(ov.Type, self._kind)
        tensor = ov.Tensor(kind, [batch * pages, heads, PAGE, width])
        return Pages(tensor, (batch, heads, pages * PAGE, width))

    def longer(self, cache: Pages, held: int, places: int) -> Pages:
        """See ``Buffers``."""
        batch, heads, _, width = cache.shape()
        after = self.empty((batch, heads, places, width))
        full = -(-held // PAGE)
        old, new = (x.tensor.data.reshape(batch, -1, heads, PAGE, width) for x in (cache, after))
        new[:, :full] = old[:, :full]
        return after


class PagedDecoder(OpenVinoGraph):
    """``decoder_model.onnx`` of the standard flavour, with inputs as of one that counts its caches.

    Inputs ``past_key_values.*`` are ``Pages``, written in place; ``cache_lengths [segments, B]`` says how
    many tokens each holds. Outputs are the logits and the kept places.

    Args:
        path, precision, threads, bfloat16: as of ``OpenVinoGraph``.

    Raises:
        CompExportError: as ``OpenVinoGraph``; a graph of another release.
    """

    def __init__(
        self, path: Path, precision: Precision, threads: int | None = None, bfloat16: bool = False
    ) -> None:
        # By itself OpenVINO would round the caches to 8 bits.
        settings = {"KV_CACHE_PRECISION": _kind_of_caches(precision, bfloat16)}
        rewrite = partial(attention_in_pages, bfloat16=bfloat16)
        super().__init__(path, precision, threads, bfloat16, settings, rewrite)
        self._steps: list[Bound] = []  # that no answer is made with

    def run(
        self,
        feeds: Mapping[str, Any],
        numbers: Sequence[str] = (),
        kept: Sequence[str] = (),
        into: Sequence[Any] = (),
    ) -> tuple[list[NDArray[Any]], list[Any]]:
        """See ``OpenVinoGraph.run``; ``kept`` are the caches, which are what was fed: ``into``."""
        assert len(kept) == len(into)
        tensors = {
            name: value.tensor if isinstance(value, Pages) else value
            for name, value in feeds.items()
        }
        arrays, _ = super().run(tensors, numbers)
        return arrays, list(into)

    def begin(self, caches: Mapping[str, Pages]) -> "Bound":
        """See ``Steps``: caches are read and written where they are."""
        with self._lock:
            bound = self._steps.pop() if self._steps else None
        bound = bound or Bound(self._compiled.create_infer_request(), {})
        for place, name in enumerate(self.inputs):
            if name in caches:
                bound.request.set_input_tensor(place, caches[name].tensor)
        return bound

    def step(self, bound: "Bound", feeds: Mapping[str, Any]) -> NDArray[np.float32]:
        """See ``Steps``."""
        for place, name in enumerate(self.inputs):
            if name in feeds:
                bound.feed(place, name, feeds[name], self._taken[place])
        bound.request.infer(share_outputs=True)
        tensor = bound.request.get_output_tensor(self._places[LOGITS])
        logits: NDArray[np.float32] = tensor.data.copy()
        return logits

    def end(self, bound: "Bound") -> None:
        """See ``Steps``: another answer begins with it."""
        with self._lock:
            self._steps.append(bound)


@dataclass(frozen=True)
class Bound:
    """A request for steps, and its small inputs, which keep their places from step to step."""

    request: Any
    inputs: dict[str, NDArray[Any]]

    def feed(self, place: int, name: str, value: NDArray[Any], kind: Any) -> None:
        """Say input ``place``, of this name and element type."""
        here = self.inputs.get(name)
        if here is None or here.shape != value.shape:
            here = self.inputs[name] = np.array(value)
            self.request.set_input_tensor(place, tensor_of(here, kind))
        else:
            here[...] = value


def _kind_of_caches(precision: Precision, bfloat16: bool) -> str:
    """As computed, and of a float16 artifact in float16."""
    if bfloat16 or precision == "bfloat16":
        return "bf16"
    return "f16" if precision == "float16" else "f32"
