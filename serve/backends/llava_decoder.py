"""Run the decoder graph for prefill and decode steps; the caches stay on the device."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.caches import CACHE_LENGTHS, PAST, PRESENT, segments_of
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.llava_ports import KEEP_FACTOR
from export.artifact.manifest import REMEDY
from serve.backends.base import Buffers, Graph, RowBuffers, Steps
from serve.backends.llava_layout import DecoderLayout, DecoderState
from serve.backends.llava_rows import DecoderRows, Table
from serve.backends.seen_prefixes import Beginning

ROOM = 256  # spare places after the prompt, and added when they are used up


class Decoder:
    """``decoder_model.onnx`` of one artifact; with ``buffers`` a step writes its token into the caches.

    With ``steps`` these run the decode steps, and the graph runs only prompts.

    Raises:
        CompExportError: an older release exported the graph.
    """

    def __init__(
        self,
        graph: Graph,
        manifest: LlavaManifest,
        buffers: Buffers | None,
        steps: Steps | None = None,
    ) -> None:
        self._graph, self._buffers, self._steps = graph, buffers, steps
        shape = manifest.decoder
        halves = [(layer, part) for layer in range(shape.num_layers) for part in ("key", "value")]
        past = tuple(f"{PAST}{layer}.{part}" for layer, part in halves)
        self._present = [f"{PRESENT}{layer}.{part}" for layer, part in halves]
        self._drops = tuple(drop.after_layer for drop in shape.drops)
        segments = segments_of(shape)
        self.layout = DecoderLayout(
            past=past,
            heads=tuple(shape.num_key_value_heads[layer] for layer, _ in halves),
            dtypes=tuple(graph.inputs[name] for name in past),
            segment_of=tuple(segments[layer] for layer, _ in halves),
            segments=len(self._drops) + 1,
            head_dim=shape.head_dim,
            counted=CACHE_LENGTHS in graph.inputs,
        )
        if manifest.flavour == "onnxruntime" and not self.layout.counted:
            raise CompExportError(
                f"decoder_model.onnx has no input {CACHE_LENGTHS}: comp-export "
                f"{manifest.versions.get('comp-export', '')} made it before decode steps wrote into "
                f"their caches; {REMEDY}"
            )

    def rows(self, table: Table, rows: int, places: int) -> DecoderRows | None:
        """Rows for answers that run together; None if caches cannot be written in place."""
        if self._steps is None or not isinstance(self._buffers, RowBuffers):
            return None
        return DecoderRows(self.layout, self._steps, self._buffers, table, rows, places)

    @property
    def continues(self) -> bool:
        """Whether a prompt can be read after the caches of its beginning."""
        return not self._drops and isinstance(self._buffers, RowBuffers) and self.layout.counted

    def check_keep_factor(self, keep_factor: float) -> None:
        """Refuse a factor if the graph has no input for it."""
        if keep_factor != 1 and KEEP_FACTOR not in self._graph.settings:
            why = "drops no tokens" if not self._drops else "is not of the onnxruntime flavour"
            raise CompExportError(
                f"keep_factor {keep_factor}: this artifact {why}; leave it at 1, "
                "or use a compressed artifact of the onnxruntime flavour"
            )

    def prefill(
        self,
        embeds: NDArray[np.float32],
        vision: NDArray[np.int64],
        text: NDArray[np.int64],
        keep_factor: float,
        known: Beginning | None = None,
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.int64]], DecoderState]:
        """Run prompts; return logits ``[B, V]``, kept positions ``[B, k]`` by drop place, and the state.

        Args:
            embeds: ``[B, N, d]``.
            vision: positions of vision tokens ``[B, Nv]``, ascending.
            text: positions of text tokens ``[B, Nt]``, ascending; together with ``vision`` all of
                ``0..N-1``.
            keep_factor: multiplies the keep ratios.
            known: the caches of the tokens before these, if ``continues``.
        """
        batch, length, _ = embeds.shape
        held = known.held if known else 0
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": np.tile(np.arange(held, held + length, dtype=np.int64), (batch, 1)),
            "vision_positions": vision,
            "text_positions": text,
        }
        # With an overridden setting caches cannot be bound: the first step copies them.
        own = self._buffers if keep_factor == 1 else None
        layout, places = self.layout, held + length + ROOM if own else 0
        if known and own:
            pasts = [own.longer(cache, held, places) for cache in known.caches]
        else:
            pasts = [
                _empty(own, (batch, heads, places, layout.head_dim), dtype)
                for heads, dtype in zip(layout.heads, layout.dtypes, strict=True)
            ]
        feeds |= zip(layout.past, pasts, strict=True)
        if layout.counted:
            feeds[CACHE_LENGTHS] = np.full((layout.segments, batch), held, np.int64)
        if keep_factor != 1:
            feeds[KEEP_FACTOR] = np.array(keep_factor, self._graph.settings[KEEP_FACTOR])
        numbers = ["logits", *(f"kept.{layer}" for layer in self._drops)]
        (logits, *kept), caches = self._graph.run(
            feeds, numbers, self._present, pasts if own else ()
        )
        lengths = (held + length, *(places.shape[1] for places in kept))
        state = DecoderState(tuple(caches), held + length, lengths)
        return logits[:, -1], dict(zip(self._drops, kept, strict=True)), state

    def step(
        self, embeds: Any, batch: int, state: DecoderState
    ) -> tuple[NDArray[np.float32], DecoderState]:
        """Run one token per sequence: ``embeds [B, 1, d]``, as a graph kept it, to ``logits [B, V]``."""
        counts = np.repeat(np.array(state.lengths, np.int64)[:, None], batch, axis=1)
        positions = np.full((batch, 1), state.position, dtype=np.int64)
        feeds = self.layout.step_feeds(embeds, positions, counts)
        lengths = tuple(held + 1 for held in state.lengths)
        pasts = self._with_room(state)
        if self._steps is not None:
            held = state.held
            if pasts is not state.caches:
                self.release(state)
                held = None
            if held is None:
                held = self._steps.begin(dict(zip(self.layout.past, pasts, strict=True)))
            logits = self._steps.step(held, feeds)
            return logits[:, -1], DecoderState(pasts, state.position + 1, lengths, held)
        feeds |= zip(self.layout.past, pasts, strict=True)
        into = pasts if self._buffers else ()
        (logits,), caches = self._graph.run(feeds, ["logits"], self._present, into)
        return logits[:, -1], DecoderState(tuple(caches), state.position + 1, lengths)

    def release(self, state: DecoderState) -> None:
        """Free the binding of the steps; caches go with the state."""
        if self._steps is not None and state.held is not None:
            self._steps.end(state.held)

    def _with_room(self, state: DecoderState) -> tuple[Any, ...]:
        """The caches, enlarged where the next token would not fit; the same tuple if all fit."""
        if self._buffers is None:
            return state.caches
        first = [self.layout.segment_of.index(segment) for segment in range(len(state.lengths))]
        full = [
            held == state.caches[place].shape()[2]
            for place, held in zip(first, state.lengths, strict=True)
        ]
        if not any(full):
            return state.caches
        return tuple(
            self._buffers.longer(cache, state.lengths[segment], state.lengths[segment] + ROOM)
            if full[segment]
            else cache
            for cache, segment in zip(state.caches, self.layout.segment_of, strict=True)
        )


def _empty(own: Buffers | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An empty cache for a prompt."""
    return own.empty(shape, dtype) if own else np.zeros(shape, dtype)
