"""The decoder graph's two uses: prefill and decode step; the caches stay where they are."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.llava_manifest import LlavaManifest
from serve.backends.base import Graph

KEEP_FACTOR = "keep_factor"


@dataclass(frozen=True)
class DecoderState:
    """What one decode step hands to the next, for a batch of B sequences in step."""

    caches: tuple[
        Any, ...
    ]  # key, value of layer 0, key, value of layer 1, ...; as its graph keeps them
    position: int  # of the next token: positions are kept, not renumbered


class Decoder:
    """``decoder_model.onnx`` of one artifact."""

    def __init__(self, graph: Graph, manifest: LlavaManifest) -> None:
        self._graph = graph
        shape = manifest.decoder
        self._past = [
            f"past_key_values.{layer}.{part}"
            for layer in range(shape.num_layers)
            for part in ("key", "value")
        ]
        self._present = [
            f"present.{layer}.{part}"
            for layer in range(shape.num_layers)
            for part in ("key", "value")
        ]
        self._drops = tuple(drop.after_layer for drop in shape.drops)
        self._heads = [heads for heads in shape.num_key_value_heads for _ in range(2)]
        self._head_dim = shape.head_dim

    def check_keep_factor(self, keep_factor: float) -> None:
        """Refuse a factor that this graph has no input for."""
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
        """Read the prompts; logits ``[B, V]``, kept places ``[B, k]`` by drop place, and the state.

        Args:
            embeds: ``[B, N, d]``.
            vision: places of vision tokens ``[B, Nv]``, ascending.
            text: places of text tokens ``[B, Nt]``, ascending; with ``vision`` all of ``0..N-1``.
            keep_factor: multiplies the keep ratios.
        """
        batch, length, _ = embeds.shape
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
            "vision_positions": vision,
            "text_positions": text,
        }
        for name, heads in zip(self._past, self._heads, strict=True):
            empty = np.zeros((batch, heads, 0, self._head_dim), self._graph.inputs[name])
            feeds[name] = empty
        if keep_factor != 1:
            feeds[KEEP_FACTOR] = np.array(keep_factor, self._graph.settings[KEEP_FACTOR])
        numbers = ["logits", *(f"kept.{layer}" for layer in self._drops)]
        (logits, *kept), caches = self._graph.run(feeds, numbers, self._present)
        state = DecoderState(tuple(caches), length)
        return logits[:, -1], dict(zip(self._drops, kept, strict=True)), state

    def step(
        self, embeds: Any, batch: int, state: DecoderState
    ) -> tuple[NDArray[np.float32], DecoderState]:
        """One token for each sequence: ``embeds [B, 1, d]``, as a graph kept it, to ``logits [B, V]``."""
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": np.full((batch, 1), state.position, dtype=np.int64),
            "vision_positions": np.zeros((batch, 0), dtype=np.int64),
            "text_positions": np.zeros((batch, 1), dtype=np.int64),
        }
        feeds.update(zip(self._past, state.caches, strict=True))
        (logits,), caches = self._graph.run(feeds, ["logits"], self._present)
        return logits[:, -1], replace(state, caches=tuple(caches), position=state.position + 1)
