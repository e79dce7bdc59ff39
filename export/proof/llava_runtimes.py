"""The variants of a LLaVA that ``verify`` compares with torch, and those that cannot run here."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact.caches import PAST
from export.artifact.llava_manifest import LlavaArtifact
from export.artifact.manifest import computed_in
from export.onnxruntime.graph import NO_BFLOAT16, LoadGraph, NumpyGraph
from export.openvino.paged_decoder import PageBuffers, Pages
from export.proof.interface import RuntimeVariant, Skipped
from export.proof.llava_onnx import OnnxRunner, OnnxState
from export.proof.llava_onnx_in_place import InPlaceRunner
from export.proof.llava_prompts import Prefilled, PromptRunner, places_in_all
from export.proof.openvino import OpenVinoOutputs, PagedOutputs, openvino_variants
from export.tensorrt.run.llava_slot import SlotState
from export.tensorrt.run.runtime import EngineRuntime

TENSOR_SCATTER_SINCE = (1, 24)  # the first ONNX Runtime with the operator


class OnnxVariant(PromptRunner):
    """An artifact in ONNX Runtime, or in OpenVINO."""

    def __init__(self, runner: OnnxRunner) -> None:
        self._runner = runner
        manifest = runner.artifact.manifest
        self.image, self.eos = manifest.image, manifest.tokens.eos_token_ids

    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        logits, kept, state = self._runner.prefill(pixel_values, input_ids)
        return Prefilled(logits[0], [place[0] for place in kept], [], state)

    def step(self, token: int, state: OnnxState) -> tuple[np.ndarray, OnnxState]:
        rows, state = self._runner.step(np.array([token]), state)
        return rows[0], state


class OpenVinoRunner(InPlaceRunner):
    """An artifact of the standard flavour in OpenVINO, with the same decoder as ``serve``."""

    def __init__(self, artifact: LlavaArtifact, bfloat16: bool = False) -> None:
        """``bfloat16``: compute in bfloat16, for any precision of the artifact."""
        self._bfloat16 = bfloat16
        super().__init__(artifact)

    def _decoder_path(self) -> Path:
        return self.artifact.graph("decoder_model")

    def _graph(self, path: Path, threads: int) -> NumpyGraph:
        load = PagedOutputs if path == self.artifact.graph("decoder_model") else OpenVinoOutputs
        return load(path, self.artifact.manifest.precision, threads or None, self._bfloat16)

    def _caches(self, batch: int, lengths: Sequence[int]) -> dict[str, Any]:
        buffers = PageBuffers(self.artifact.manifest.precision, self._bfloat16)
        heads = zip(self._shape.num_key_value_heads, lengths, strict=True)
        return {
            f"{PAST}{layer}.{kind}": buffers.empty((batch, count, length, self._shape.head_dim))
            for layer, (count, length) in enumerate(heads)
            for kind in ("key", "value")
        }

    def _places(self, cache: Pages) -> int:
        return cache.shape()[2]


def llava_on_graphs(artifact: LlavaArtifact, load: LoadGraph) -> OnnxVariant:
    """The graphs of an artifact as ``load`` loads them."""

    class Loaded(OnnxRunner):
        def _graph(self, path: Path, threads: int) -> NumpyGraph:
            del threads
            return load(path)

    return OnnxVariant(Loaded(artifact))


class LlavaEngines(PromptRunner):
    """Engines on a GPU."""

    def __init__(self, runtime: EngineRuntime) -> None:
        self._slot = runtime.slot()
        manifest = runtime.engines.manifest.llava
        self._image_token, self._images = manifest.tokens.image_token_id, manifest.vision
        self.image, self.eos = manifest.image, manifest.tokens.eos_token_ids

    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        is_image = input_ids[0] == self._image_token
        places = [np.flatnonzero(kind)[None].astype(np.int64) for kind in (is_image, ~is_image)]
        pixels = pixel_values if is_image.any() else None
        prefilled = self._slot.prefill(pixels, input_ids, *places)
        kept = [prefilled.kept[layer][0] for layer in sorted(prefilled.kept)]
        if prefilled.selected is not None:
            kept.insert(0, places_in_all(prefilled.selected, self._images.tower_tokens)[0])
        return Prefilled(prefilled.logits[0], kept, [], prefilled.state)

    def step(self, token: int, state: SlotState) -> tuple[np.ndarray, SlotState]:
        rows, state = self._slot.step([token], state)
        return rows[0], state


def llava_variants(artifact: LlavaArtifact) -> Iterator[RuntimeVariant | Skipped]:
    """Yield ONNX Runtime, also with the decoder that TensorRT compiles, and OpenVINO."""
    manifest, where = artifact.manifest, artifact.path.name
    name = f"ONNX Runtime ({where})"

    def in_openvino(bfloat16: bool) -> OnnxVariant:
        return OnnxVariant(OpenVinoRunner(artifact, bfloat16))

    if manifest.precision == "bfloat16":
        yield Skipped(name, NO_BFLOAT16)
        yield from openvino_variants(artifact, in_openvino)
        return

    yield RuntimeVariant.of(name, artifact, lambda: OnnxVariant(OnnxRunner(artifact)))
    if manifest.flavour != "standard":
        return
    name = f"ONNX Runtime, caches in place ({where})"
    if computed_in(manifest.precision) != manifest.precision:
        pass  # such artifacts have no decoder for TensorRT
    elif _onnxruntime_version() < TENSOR_SCATTER_SINCE:
        since = ".".join(map(str, TENSOR_SCATTER_SINCE))
        yield Skipped(name, f"TensorScatter needs ONNX Runtime {since}")
    else:
        yield RuntimeVariant.of(name, artifact, lambda: OnnxVariant(InPlaceRunner(artifact)))
    yield from openvino_variants(artifact, in_openvino)


def _onnxruntime_version() -> tuple[int, ...]:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return tuple(int(part) for part in version(name).split(".")[:2])
        except PackageNotFoundError:
            continue
    return (0, 0)
