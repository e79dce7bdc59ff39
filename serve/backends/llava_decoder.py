"""Run the decoder graph for prefill and decode steps; the caches stay on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.caches import CACHE_LENGTHS, PAST, PRESENT, segments_of
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.llava_ports import KEEP_FACTOR
from export.artifact.manifest import REMEDY
from serve.backends.base import Buffers, Graph, Steps

ROOM = 256  # spare places after the prompt, and added when they are used up


@dataclass(frozen=True)
class DecoderState:
    """The state between decode steps, for a batch of B sequences in step.

    Attributes:
        caches: key, value of layer 0, key, value of layer 1, …; in the graph's own form.
        position: position of the next token: positions are kept, not renumbered.
        lengths: tokens in the caches of each segment (``export.artifact.caches``).
        held: the binding of ``Steps``, from the first step on.
    """

    caches: tuple[Any, ...]
    position: int
    lengths: tuple[int, ...]
    held: Any = None


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
        self._past = [
            f"{PAST}{layer}.{part}"
            for layer in range(shape.num_layers)
            for part in ("key", "value")
        ]
        self._present = [
            f"{PRESENT}{layer}.{part}"
            for layer in range(shape.num_layers)
            for part in ("key", "value")
        ]
        self._drops = tuple(drop.after_layer for drop in shape.drops)
        self._heads = [heads for heads in shape.num_key_value_heads for _ in range(2)]
        self._head_dim = shape.head_dim
        self._segments = [segment for segment in segments_of(shape) for _ in range(2)]
        self._counted = CACHE_LENGTHS in graph.inputs
        if manifest.flavour == "onnxruntime" and not self._counted:
            raise CompExportError(
                f"decoder_model.onnx has no input {CACHE_LENGTHS}: comp-export "
                f"{manifest.versions.get('comp-export', '')} made it before decode steps wrote into "
                f"their caches; {REMEDY}"
            )

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
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.int64]], DecoderState]:
        """Run prompts; return logits ``[B, V]``, kept positions ``[B, k]`` by drop place, and the state.

        Args:
            embeds: ``[B, N, d]``.
            vision: positions of vision tokens ``[B, Nv]``, ascending.
            text: positions of text tokens ``[B, Nt]``, ascending; together with ``vision`` all of
                ``0..N-1``.
            keep_factor: multiplies the keep ratios.
        """
        batch, length, _ = embeds.shape
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
            "vision_positions": vision,
            "text_positions": text,
        }
        # With an overridden setting caches cannot be bound: the first step copies them.
        own = self._buffers if keep_factor == 1 else None
        pasts = [
            self._empty(own, name, (batch, heads, length + ROOM if own else 0, self._head_dim))
            for name, heads in zip(self._past, self._heads, strict=True)
        ]
        feeds |= zip(self._past, pasts, strict=True)
        feeds |= self._counts([0] * (len(self._drops) + 1), batch)
        if keep_factor != 1:
            feeds[KEEP_FACTOR] = np.array(keep_factor, self._graph.settings[KEEP_FACTOR])
        numbers = ["logits", *(f"kept.{layer}" for layer in self._drops)]
        (logits, *kept), caches = self._graph.run(
            feeds, numbers, self._present, pasts if own else ()
        )
        lengths = (length, *(places.shape[1] for places in kept))
        state = DecoderState(tuple(caches), length, lengths)
        return logits[:, -1], dict(zip(self._drops, kept, strict=True)), state

    def step(
        self, embeds: Any, batch: int, state: DecoderState
    ) -> tuple[NDArray[np.float32], DecoderState]:
        """Run one token per sequence: ``embeds [B, 1, d]``, as a graph kept it, to ``logits [B, V]``."""
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": np.full((batch, 1), state.position, dtype=np.int64),
            "vision_positions": np.zeros((batch, 0), dtype=np.int64),
            "text_positions": np.zeros((batch, 1), dtype=np.int64),
        }
        feeds |= self._counts(state.lengths, batch)
        lengths = tuple(held + 1 for held in state.lengths)
        pasts = self._with_room(state)
        if self._steps is not None:
            held = state.held
            if pasts is not state.caches:
                self.release(state)
                held = None
            if held is None:
                held = self._steps.begin(dict(zip(self._past, pasts, strict=True)))
            logits = self._steps.step(held, feeds)
            return logits[:, -1], DecoderState(pasts, state.position + 1, lengths, held)
        feeds |= zip(self._past, pasts, strict=True)
        into = pasts if self._buffers else ()
        (logits,), caches = self._graph.run(feeds, ["logits"], self._present, into)
        return logits[:, -1], DecoderState(tuple(caches), state.position + 1, lengths)

    def release(self, state: DecoderState) -> None:
        """Free the binding of the steps; caches go with the state."""
        if self._steps is not None and state.held is not None:
            self._steps.end(state.held)

    def _empty(self, own: Buffers | None, name: str, shape: tuple[int, ...]) -> Any:
        """An empty cache for a prompt."""
        dtype = self._graph.inputs[name]
        return own.empty(shape, dtype) if own else np.zeros(shape, dtype)

    def _counts(self, lengths: Sequence[int], batch: int) -> dict[str, Any]:
        """The input with cache lengths, if the graph has it."""
        if not self._counted:
            return {}
        return {CACHE_LENGTHS: np.repeat(np.array(lengths, np.int64)[:, None], batch, axis=1)}

    def _with_room(self, state: DecoderState) -> tuple[Any, ...]:
        """The caches, enlarged where the next token would not fit; the same tuple if all fit."""
        if self._buffers is None:
            return state.caches
        first = [self._segments.index(segment) for segment in range(len(state.lengths))]
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
            for cache, segment in zip(state.caches, self._segments, strict=True)
        )
