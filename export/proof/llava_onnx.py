"""Run a LLaVA artifact in plain ONNX Runtime, to verify it against torch.

No IO binding and no sampling: ``serve.Engine`` answers users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp.errors import CompExportError
from export.artifact.caches import CACHE_LENGTHS, PAST, PRESENT
from export.artifact.llava_manifest import KEPT, LlavaArtifact
from export.artifact.llava_ports import KEEP_FACTOR
from export.artifact.load import load_artifact_of
from export.artifact.manifest import computed_in
from export.onnxruntime.graph import NumpyGraph, OrtGraph
from export.proof.llava_prompts import places_in_all


@dataclass(frozen=True)
class OnnxState:
    """Caches by input name after a prefill or a step, and the next position.

    ``filled``: used places in the caches of each segment, if their size is fixed.
    """

    caches: dict[str, np.ndarray]
    position: int
    filled: tuple[int, ...] = ()


class OnnxRunner:
    """Prefill and decode steps with the three graphs of an artifact.

    Args:
        artifact: an opened artifact, or its directory (files are then checked).
        threads: threads of one operator; 0 takes one for each core.

    Raises:
        CompExportError: ONNX Runtime is missing, or refuses a graph.
    """

    def __init__(self, artifact: LlavaArtifact | Path, threads: int = 0) -> None:
        self.artifact = (
            artifact
            if isinstance(artifact, LlavaArtifact)
            else load_artifact_of(artifact, LlavaArtifact)
        )
        manifest = self.artifact.manifest
        graph = self.artifact.graph
        paths = (graph("vision_encoder"), graph("embed_tokens"), self._decoder_path())
        self._vision, self._embed, self._decoder = (self._graph(path, threads) for path in paths)
        self._tokens = manifest.tokens
        self._shape, self._images = manifest.decoder, manifest.vision
        # Empty at first; NumPy lacks bfloat16, and graphs of that type are not run here.
        self._cache_dtype = np.dtype(
            "float32" if manifest.precision == "bfloat16" else computed_in(manifest.precision)
        )

    def _graph(self, path: Path, threads: int) -> NumpyGraph:
        if self.artifact.manifest.precision == "bfloat16":
            raise CompExportError(
                f"{self.artifact.path}: ONNX Runtime has no bfloat16 kernels on a CPU: "
                "export with --precision float16 or float32"
            )
        return OrtGraph(path, threads=threads)

    def _decoder_path(self) -> Path:
        return self.artifact.graph("decoder_model")

    def prefill(
        self, pixel_values: np.ndarray, input_ids: np.ndarray, keep_factor: float | None = None
    ) -> tuple[np.ndarray, list[np.ndarray], OnnxState]:
        """Run whole prompts of one length, with one number of image tokens.

        Args:
            pixel_values: ``[I, 3, H, W]`` float32, images in the order their tokens appear; may be
                empty (``I = 0``) when there are no image tokens.
            input_ids: ``[B, N]`` int64, image tokens expanded.
            keep_factor: scales the keep ratios (onnxruntime flavour only).

        Returns:
            logits ``[B, V]``, kept indices ``[B, k]`` (see ``Prefilled``), and the state.
        """
        embeds, chosen = self._embeds(pixel_values, input_ids)
        is_image = input_ids == self._tokens.image_token_id
        vision = np.stack([np.flatnonzero(row) for row in is_image]).astype(np.int64)
        text = np.stack([np.flatnonzero(~row) for row in is_image]).astype(np.int64)
        batch, length = input_ids.shape
        positions = np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))
        caches = self._empty_caches(batch, vision.shape[1], text.shape[1])
        feeds = feeds_of(embeds, positions, vision, text)
        if keep_factor is not None:
            feeds[KEEP_FACTOR] = np.array(keep_factor, np.float32)
        logits, kept, state = self._run(feeds, OnnxState(caches, 0))
        return logits, chosen + kept, state

    def step(self, token: np.ndarray, state: OnnxState) -> tuple[np.ndarray, OnnxState]:
        """One decode step: ``token [B]`` int64 → logits ``[B, V]``."""
        batch = len(token)
        feeds = feeds_of(
            self._embed.run({"input_ids": token[:, None].astype(np.int64)})["inputs_embeds"],
            np.full((batch, 1), state.position, np.int64),
            np.zeros((batch, 0), np.int64),
            np.zeros((batch, 1), np.int64),
        )
        logits, _, state = self._run(feeds, state)
        return logits, state

    def _see(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        return self._vision.run({"pixel_values": pixel_values.astype(np.float32)})

    def _empty_caches(self, batch: int, vision: int, text: int) -> dict[str, np.ndarray]:
        """Inputs ``past_key_values.*`` before a prompt with these numbers of image and text tokens."""
        del vision, text  # these caches grow
        return self._caches(batch, [0] * self._shape.num_layers)

    def _caches(self, batch: int, lengths: Sequence[int]) -> dict[str, np.ndarray]:
        heads = zip(self._shape.num_key_value_heads, lengths, strict=True)
        return {
            f"{PAST}{layer}.{kind}": np.zeros(
                (batch, count, length, self._shape.head_dim), self._cache_dtype
            )
            for layer, (count, length) in enumerate(heads)
            for kind in ("key", "value")
        }

    def _lengths(self, caches: dict[str, np.ndarray], batch: int) -> np.ndarray:
        """Tokens in the caches of each segment ``[segments, B]``; these caches have no spare places."""
        first = [0, *(drop.after_layer for drop in self._shape.drops)]
        held = [caches[f"{PAST}{layer}.key"].shape[2] for layer in first]
        return np.repeat(np.array(held, np.int64)[:, None], batch, axis=1)

    def _embeds(
        self, pixel_values: np.ndarray, input_ids: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Embeddings ``[B, N, d]``, and the selected tower tokens if the model selects."""
        embeds = self._embed.run({"input_ids": input_ids.astype(np.int64)})["inputs_embeds"]
        places, images = input_ids == self._tokens.image_token_id, self._images
        chosen = images.selection is not None
        batch = len(input_ids)
        if not places.any():
            return embeds, [np.zeros((batch, 0), np.int64)] * chosen
        seen = self._see(pixel_values)
        features = seen["image_features"]
        embeds[places] = features.reshape(-1, features.shape[-1])
        if not chosen:
            return embeds, []
        return embeds, [places_in_all(seen[KEPT], images.tower_tokens, batch)]

    def _run(
        self, feeds: dict[str, np.ndarray], state: OnnxState
    ) -> tuple[np.ndarray, list[np.ndarray], OnnxState]:
        """Run the decoder: logits ``[B, V]``, kept indices, and the next state."""
        if self.artifact.manifest.flavour == "onnxruntime":
            batch = len(feeds["inputs_embeds"])
            feeds = feeds | {CACHE_LENGTHS: self._lengths(state.caches, batch)}
        outputs = self._decoder.run(feeds | state.caches)
        caches = {
            name.replace(PRESENT, PAST): value
            for name, value in outputs.items()
            if name.startswith(PRESENT)
        }
        kept = [outputs[f"kept.{drop.after_layer}"] for drop in self._shape.drops]
        position = state.position + feeds["position_ids"].shape[1]
        return outputs["logits"][:, 0], kept, OnnxState(caches, position)


def feeds_of(
    embeds: np.ndarray, position_ids: np.ndarray, vision: np.ndarray, text: np.ndarray
) -> dict[str, np.ndarray]:
    """Inputs of a decoder graph, without its caches."""
    return {
        "inputs_embeds": embeds,
        "position_ids": position_ids,
        "vision_positions": vision,
        "text_positions": text,
    }
