"""Buffers, caches and contexts of one LLaVA request on the GPU, kept across its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.caches import CACHE_LENGTHS, PAST, PRESENT, cached_tokens, segments_of
from export.artifact.llava_manifest import KEPT
from export.tensorrt.manifest import EngineManifest
from export.tensorrt.names import DECODE, DECODER, EMBED, PREFILL, VISION
from export.tensorrt.run.cuda import Cuda, CudaGraph
from export.tensorrt.run.execution import Execution, LoadedEngine

FLOAT, INT64 = np.dtype(np.float32), np.dtype(np.int64)
CACHE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ALIGNMENT = 256  # bytes: TensorRT's alignment of addresses
STEP_INPUTS = ("input_ids", "position_ids", CACHE_LENGTHS)


@dataclass(frozen=True)
class SlotState:
    """The progress of a request; its caches are in the slot."""

    slot: "RequestBuffers"
    batch: int
    position: int  # of the next token: positions are kept, not renumbered
    lengths: tuple[int, ...]  # filled places in the caches of each segment


@dataclass(frozen=True)
class SlotPrefill:
    """The results of a prefill: ``logits [B, V]`` of the last token, kept positions ``[B, k]``.

    ``selected [I, k]``: the selected tokens of the vision tower, if it selects.
    """

    logits: NDArray[np.float32]
    kept: dict[int, NDArray[np.int64]]
    state: SlotState
    vision_ms: float
    selected: NDArray[np.int64] | None = None


class RequestBuffers:
    """Runs one request at a time, on its own stream.

    Caches never reach the host: the decoder writes them in place, a step uploads the new tokens (one
    copy) and downloads the logits.
    """

    def __init__(
        self,
        manifest: EngineManifest,
        engines: Mapping[str, LoadedEngine],
        cuda: Cuda,
        own_graphs: bool,
    ) -> None:
        """``own_graphs``: capture decode steps as CUDA graphs (if TensorRT does not)."""
        self._cuda = cuda
        self._manifest = manifest
        self._shape = manifest.llava.decoder
        self._stream = cuda.stream()
        self._own_graphs = own_graphs
        self._graph: CudaGraph | None = None
        self._warm = False  # the step has run with the bound shapes
        self._bound_batch = 0
        names = {name: [p.name for p in e.profiles] for name, e in manifest.engines.items()}
        self._vision = self._context(engines, names, VISION, PREFILL)
        self._embed = self._context(engines, names, EMBED, PREFILL)
        self._embed_step = self._context(engines, names, EMBED, PREFILL, replayed=True)
        self._prefill = self._context(engines, names, DECODER, PREFILL)
        self._decode = self._context(engines, names, DECODER, DECODE, replayed=True)
        self._buffers = {name: cuda.allocate(size) for name, size in self._sizes().items()}
        self._arena = _Arena(cuda, manifest.limits.max_batch, len(self._shape.drops) + 1)

    def _context(
        self,
        engines: Mapping[str, LoadedEngine],
        profiles: Mapping[str, list[str]],
        engine: str,
        profile: str,
        replayed: bool = False,
    ) -> Execution:
        number = profiles[engine].index(profile)
        return engines[engine].context(number, self._stream, replayed)

    def _sizes(self) -> dict[str, int]:
        """Bytes of each buffer, for the largest request."""
        limits, shape, vision = self._manifest.limits, self._shape, self._manifest.llava.vision
        batch, pictures = limits.max_batch, limits.max_batch * limits.images
        image_tokens = limits.images * vision.image_tokens
        longest = image_tokens + limits.max_prompt
        counts = cached_tokens(shape, image_tokens, limits.max_prompt)
        sizes = {
            "pixel_values": pictures * vision.num_channels * vision.image_size**2 * FLOAT.itemsize,
            "image_features": batch * image_tokens * shape.hidden_size * FLOAT.itemsize,
            "input_ids": batch * longest * INT64.itemsize,
            "inputs_embeds": batch * longest * shape.hidden_size * FLOAT.itemsize,
            "position_ids": batch * longest * INT64.itemsize,
            "vision_positions": batch * image_tokens * INT64.itemsize,
            "text_positions": batch * limits.max_prompt * INT64.itemsize,
            "first_text": batch * INT64.itemsize,  # stays zero: the one token of a step
            "logits": batch * shape.vocab_size * FLOAT.itemsize,
        }
        if vision.selection is not None:
            sizes[KEPT] = pictures * vision.selection.dominant * INT64.itemsize
        for drop, count in zip(shape.drops, counts[1:], strict=True):
            sizes[f"kept.{drop.after_layer}"] = batch * count * INT64.itemsize
        value = CACHE_BYTES[self._manifest.artifact.precision]
        for name, dims in self._cache_shapes(batch).items():
            sizes[name] = int(np.prod(dims)) * value
        return sizes

    def _cache_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """Shapes of ``{layer}.key`` and ``{layer}.value``."""
        shape, capacities = self._shape, self._manifest.cache_capacities
        layers = zip(shape.num_key_value_heads, segments_of(shape), strict=True)
        return {
            f"{layer}.{kind}": (batch, heads, capacities[segment], shape.head_dim)
            for layer, (heads, segment) in enumerate(layers)
            for kind in ("key", "value")
        }

    def prefill(
        self,
        pixels: NDArray[np.float32] | None,
        ids: NDArray[np.int64],
        vision: NDArray[np.int64],
        text: NDArray[np.int64],
    ) -> SlotPrefill:
        """Run prompts of one length.

        Args:
            pixels: ``[I, C, S, S]``, the images of all prompts in turn, or none.
            ids: ``[B, N]``, image tokens expanded.
            vision, text: positions of image tokens ``[B, Nv]`` and of text tokens ``[B, Nt]``.
        """
        batch, length = ids.shape
        start = perf_counter()
        if pixels is not None:
            self._see(pixels)
            self._cuda.synchronize(self._stream)
        vision_ms = (perf_counter() - start) * 1000
        inputs = {
            "input_ids": ids,
            "position_ids": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
            "vision_positions": vision,
            "text_positions": text,
            CACHE_LENGTHS: np.zeros((len(self._shape.drops) + 1, batch), np.int64),
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        addresses = {name: self._address(name) for name in arrays if name != CACHE_LENGTHS}
        addresses[CACHE_LENGTHS] = self._arena.addresses[CACHE_LENGTHS]
        for name, array in arrays.items():
            self._cuda.upload(addresses[name], array, self._stream)
        self._embed_tokens(self._embed, addresses["input_ids"], (batch, length))
        if pixels is not None:
            self._place_features(vision, length)
        shapes = {name: array.shape for name, array in arrays.items() if name != "input_ids"}
        self._bind_decoder(self._prefill, addresses, shapes, batch, length)
        self._prefill.enqueue()
        counts = cached_tokens(self._shape, vision.shape[1], text.shape[1])
        kept = {
            drop.after_layer: np.empty((batch, count), np.int64)
            for drop, count in zip(self._shape.drops, counts[1:], strict=True)
        }
        for layer, array in kept.items():
            self._cuda.download(array, self._address(f"kept.{layer}"), self._stream)
        selection, selected = self._manifest.llava.vision.selection, None
        if selection is not None:
            images = 0 if pixels is None else len(pixels)
            selected = np.empty((images, selection.dominant), np.int64)
            if images:
                self._cuda.download(selected, self._address(KEPT), self._stream)
        state = SlotState(self, batch, length, counts)
        return SlotPrefill(self._logits(batch), kept, state, vision_ms, selected)

    def step(self, tokens: Sequence[int], state: SlotState) -> tuple[NDArray[Any], SlotState]:
        """Run one token per sequence: ``logits [B, V]`` and the next state.

        Raises:
            CompExportError: the caches are full.
        """
        if state.lengths[0] >= self._manifest.cache_capacities[0]:
            limit = self._manifest.limits.max_new_tokens
            raise CompExportError(
                f"the caches are full after --max-new-tokens {limit}: build the engines again with "
                f"`comp-export tensorrt --force --max-new-tokens {2 * limit}`"
            )
        batch = state.batch
        if batch != self._bound_batch:
            self._bind_step(batch)
        self._arena.fill(tokens, state.position, state.lengths, self._stream)
        self._run_step()
        lengths = tuple(length + 1 for length in state.lengths)
        return self._logits(batch), SlotState(self, batch, state.position + 1, lengths)

    def _run_step(self) -> None:
        """Embed and decode one token; from the second step on as one CUDA graph."""

        def work() -> None:
            self._embed_step.enqueue()
            self._decode.enqueue()

        if self._graph is None and self._own_graphs and self._warm:
            self._graph = self._cuda.capture(work, self._stream)
        if self._graph is None:
            work()  # TensorRT finishes its set-up in the first run, which cannot be captured
            self._warm = True
        else:
            self._graph.launch(self._stream)

    def _bind_step(self, batch: int) -> None:
        addresses = self._arena.addresses | {
            "vision_positions": self._address("vision_positions"),
            "text_positions": self._address("first_text"),
        }
        self._embed_tokens(self._embed_step, addresses["input_ids"], (batch, 1), run=False)
        shapes = {
            "position_ids": (batch, 1),
            "vision_positions": (batch, 0),
            "text_positions": (batch, 1),
            CACHE_LENGTHS: (len(self._shape.drops) + 1, batch),
        }
        self._bind_decoder(self._decode, addresses, shapes, batch, 1)
        self._bound_batch, self._graph, self._warm = batch, None, False

    def _see(self, pixels: NDArray[np.float32]) -> None:
        images = np.ascontiguousarray(pixels, np.float32)
        self._cuda.upload(self._address("pixel_values"), images, self._stream)
        self._vision.bind_input("pixel_values", self._address("pixel_values"), images.shape)
        self._vision.bind_output("image_features", self._address("image_features"))
        if KEPT in self._buffers:
            self._vision.bind_output(KEPT, self._address(KEPT))
        self._vision.enqueue()
        self._cuda.synchronize(self._stream)  # ``images`` may go now

    def _embed_tokens(
        self, execution: Execution, ids: int, shape: tuple[int, int], run: bool = True
    ) -> None:
        execution.bind_input("input_ids", ids, shape)
        execution.bind_output("inputs_embeds", self._address("inputs_embeds"))
        if run:
            execution.enqueue()

    def _place_features(self, vision: NDArray[np.int64], length: int) -> None:
        """Copy image features over the embeddings of image tokens, one contiguous run at a time."""
        row = self._shape.hidden_size * FLOAT.itemsize
        source, target = self._address("image_features"), self._address("inputs_embeds")
        for number, places in enumerate(vision):
            breaks = np.flatnonzero(np.diff(places) != 1) + 1
            for first, end in pairwise([0, *breaks.tolist(), len(places)]):
                if first == end:
                    continue
                to = target + (number * length + int(places[first])) * row
                taken = source + (number * vision.shape[1] + first) * row
                self._cuda.copy(to, taken, (end - first) * row, self._stream)

    def _bind_decoder(
        self,
        execution: Execution,
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        batch: int,
        length: int,
    ) -> None:
        embeds = (batch, length, self._shape.hidden_size)
        execution.bind_input("inputs_embeds", self._address("inputs_embeds"), embeds)
        for name, shape in shapes.items():
            execution.bind_input(name, addresses[name], shape)
        for name, shape in self._cache_shapes(batch).items():
            execution.bind_input(f"{PAST}{name}", self._address(name), shape)
            execution.bind_output(f"{PRESENT}{name}", self._address(name))
        for name in ("logits", *(f"kept.{drop.after_layer}" for drop in self._shape.drops)):
            execution.bind_output(name, self._address(name))

    def _logits(self, batch: int) -> NDArray[np.float32]:
        """Wait for the stream and download the logits ``[B, V]``."""
        logits = np.empty((batch, self._shape.vocab_size), np.float32)
        self._cuda.download(logits, self._address("logits"), self._stream)
        self._cuda.synchronize(self._stream)
        return logits

    def _address(self, name: str) -> int:
        return self._buffers[name].address


class _Arena:
    """Inputs that change at every step, in one GPU buffer, so that one copy uploads them."""

    def __init__(self, cuda: Cuda, batch: int, segments: int) -> None:
        self._cuda = cuda
        counts = dict(zip(STEP_INPUTS, (batch, batch, batch * segments), strict=True))
        self._starts: dict[str, int] = {}  # in elements
        total = 0
        for name, count in counts.items():
            self._starts[name] = total
            unit = ALIGNMENT // INT64.itemsize
            total += -(-count // unit) * unit
        self._host = np.zeros(total, np.int64)
        self._buffer = cuda.allocate(self._host.nbytes)
        self.addresses = {
            name: self._buffer.address + start * INT64.itemsize
            for name, start in self._starts.items()
        }

    def fill(
        self, tokens: Sequence[int], position: int, lengths: tuple[int, ...], stream: int
    ) -> None:
        """Upload the tokens, their position and the filled places of each segment."""
        batch = len(tokens)
        values: tuple[list[int], ...] = (
            list(tokens),
            [position] * batch,
            np.repeat(lengths, batch).tolist(),
        )
        for name, row in zip(STEP_INPUTS, values, strict=True):
            start = self._starts[name]
            self._host[start : start + len(row)] = row
        self._cuda.upload(self._buffer.address, self._host, stream)
