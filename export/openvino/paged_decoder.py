"""A decoder in OpenVINO with paged caches, written in place.

The exported graph takes caches and returns longer ones, so every step would rewrite all of them. Here
attention and caches are one operator, as in OpenVINO's own LLM server: it writes the present tokens into
given pages, and is faster on prompts too.

Steps of one sequence have a graph of their own (``export.openvino.decode_step``) from the same file.
OpenVINO packs its weights a second time, so large models, whose steps are bound by reading weights, do
without it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact.manifest import Precision
from export.openvino.decode_step import Bound, StepGraph, for_one_token, weight_bytes
from export.openvino.graph import OpenVinoGraph, compiled, loading, openvino
from export.openvino.paged_attention import PAGE, attention_in_pages

HELD_TWICE = 2**30  # bytes of weights; up to this size steps have their own graph


@dataclass(frozen=True)
class Pages:
    """One cache of B sequences: ``tensor [B·pages, H, PAGE, hd]``, each sequence's pages in one piece."""

    tensor: Any
    sizes: tuple[int, int, int, int]

    def shape(self) -> tuple[int, int, int, int]:
        """``[B, H, places, hd]``, as for a contiguous cache."""
        return self.sizes

    def by_row(self) -> NDArray[Any]:
        """The pages of each sequence ``[B, pages, H, PAGE, hd]``, in the same memory."""
        batch, heads, places, width = self.sizes
        rows: NDArray[Any] = self.tensor.data.reshape(batch, places // PAGE, heads, PAGE, width)
        return rows


class PageBuffers:
    """Allocates caches (see ``RowBuffers``) for a ``PagedDecoder`` with the same arguments."""

    def __init__(self, precision: Precision, bfloat16: bool = False) -> None:
        self._kind = _kind_of_caches(precision, bfloat16)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Pages:
        """Allocate for ``[B, H, S, hd]``; pages that are never written take no memory."""
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
        old, new = (each.by_row() for each in (cache, after))
        new[:, :full] = old[:, :full]
        return after

    def first(self, cache: Pages, rows: int) -> Pages:
        """See ``RowBuffers``."""
        _, heads, places, width = cache.shape()
        pages = rows * places // PAGE
        tensor = openvino().Tensor(cache.tensor, [0, 0, 0, 0], [pages, heads, PAGE, width])
        return Pages(tensor, (rows, heads, places, width))

    def copy(self, source: Pages, of: int, target: Pages, to: int, held: int) -> None:
        """See ``RowBuffers``: whole pages are copied."""
        full = -(-held // PAGE)
        target.by_row()[to, :full] = source.by_row()[of, :full]


class PagedDecoder(OpenVinoGraph):
    """``decoder_model.onnx`` of the standard flavour, with the inputs of a graph that counts its caches.

    Inputs ``past_key_values.*`` are ``Pages``, written in place; ``cache_lengths [segments, B]`` is the
    number of tokens in each. Outputs are the logits and the kept positions.

    Args:
            path, precision, threads, bfloat16: as for ``OpenVinoGraph``.

    Raises:
        CompExportError: as for ``OpenVinoGraph``; also a graph of another release.
    """

    def __init__(
        self, path: Path, precision: Precision, threads: int | None = None, bfloat16: bool = False
    ) -> None:
        # By default OpenVINO rounds the caches to 8 bits.
        settings = {"KV_CACHE_PRECISION": _kind_of_caches(precision, bfloat16)}
        options = (precision, threads, bfloat16, settings)
        alone: Future[Any] | None = None
        with ThreadPoolExecutor(1) as pool:  # OpenVINO compiles a graph on one thread

            def in_pages(model: Any) -> None:
                nonlocal alone
                attention_in_pages(model, bfloat16)
                if weight_bytes(model) <= HELD_TWICE:
                    alone = pool.submit(_for_one_token, model.clone(), path, *options)

            super().__init__(path, *options, in_pages)
            self._shared = StepGraph(self._compiled)
            self._alone = None if alone is None else StepGraph(alone.result())

    def run(
        self,
        feeds: Mapping[str, Any],
        numbers: Sequence[str] = (),
        kept: Sequence[str] = (),
        into: Sequence[Any] = (),
    ) -> tuple[list[NDArray[Any]], list[Any]]:
        """See ``OpenVinoGraph.run``; ``kept`` are the caches, which are the inputs ``into``."""
        assert len(kept) == len(into)
        tensors = {
            name: value.tensor if isinstance(value, Pages) else value
            for name, value in feeds.items()
        }
        arrays, _ = super().run(tensors, numbers)
        return arrays, list(into)

    def begin(self, caches: Mapping[str, Pages]) -> Bound:
        """See ``Steps``: caches are read and written in place."""
        batch = next(iter(caches.values())).sizes[0]
        graph = self._alone if batch == 1 and self._alone is not None else self._shared
        return graph.begin({name: cache.tensor for name, cache in caches.items()})

    def step(self, bound: Bound, feeds: Mapping[str, Any]) -> NDArray[np.float32]:
        """See ``Steps``."""
        return bound.graph.step(bound, feeds)

    def end(self, bound: Bound) -> None:
        """See ``Steps``: returns the request to the pool."""
        bound.graph.end(bound)


def _for_one_token(model: Any, path: Path, *options: Any) -> Any:
    with loading(path):
        for_one_token(model)
    return compiled(model, path, *options)


def _kind_of_caches(precision: Precision, bfloat16: bool) -> str:
    """The element type of caches: the computation's, and float16 for a float16 artifact."""
    if bfloat16 or precision == "bfloat16":
        return "bf16"
    return "f16" if precision == "float16" else "f32"
