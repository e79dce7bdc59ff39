"""The forms of a LLaVA that ``verify`` compares with torch, and those that cannot run here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from export.engines.runtime import EngineRuntime
from export.in_place_runner import InPlaceRunner
from export.llava_manifest import LlavaArtifact
from export.manifest import computed_in
from export.openvino_forms import OpenVinoOutputs, openvino_form
from export.openvino_steps import OpenVinoSteps
from export.ort_graph import NO_BFLOAT16, LoadGraph, NumpyGraph
from export.ort_runner import OnnxRunner, OnnxState, feeds_of
from export.parity import Greedy
from export.prompts import Prefilled, PromptRunner, places_in_all
from export.proof import Form, Skipped

TENSOR_SCATTER_SINCE = (1, 24)  # ONNX Runtime that knows the operator


class OnnxForm(PromptRunner):
    """An artifact in ONNX Runtime, or in OpenVINO."""

    def __init__(self, runner: OnnxRunner) -> None:
        self._runner = runner
        self.image = runner.artifact.manifest.image

    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        logits, kept, state = self._runner.prefill(pixel_values, input_ids)
        return Prefilled(logits[0], [place[0] for place in kept], [], state)

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Greedy:
        logits = prefilled.logits[None]
        return self._runner.continue_greedily(logits, prefilled.state, max_new_tokens)


@dataclass(frozen=True)
class OpenVinoState(OnnxState):
    """Behind a step: ``request`` holds the caches."""

    request: Any = None


class OpenVinoRunner(OnnxRunner):
    """As ``OnnxRunner``, in OpenVINO, steps as users' are; the artifact is of the standard flavour."""

    def __init__(self, artifact: LlavaArtifact) -> None:
        super().__init__(artifact)
        self._steps = OpenVinoSteps(artifact.decoder_model, artifact.manifest.precision)

    def _run(
        self,
        embeds: np.ndarray,
        position_ids: np.ndarray,
        vision: np.ndarray,
        text: np.ndarray,
        state: OnnxState,
        extra: dict[str, Any],
    ) -> tuple[np.ndarray, list[np.ndarray], OnnxState]:
        if state.position == 0:
            return super()._run(embeds, position_ids, vision, text, state, extra)
        request = (
            state.request if isinstance(state, OpenVinoState) else self._steps.begin(state.caches)
        )
        logits = self._steps.step(request, feeds_of(embeds, position_ids, vision, text))
        return logits[:, 0], [], OpenVinoState({}, state.position + 1, request=request)

    def _graph(self, path: Path, providers: tuple[str, ...], threads: int) -> OpenVinoOutputs:
        del providers  # ONNX Runtime's
        return OpenVinoOutputs(path, self.artifact.manifest.precision, threads or None)


def llava_on_graphs(artifact: LlavaArtifact, load: LoadGraph) -> OnnxForm:
    """The graphs of an artifact as a function loads them."""

    class Loaded(OnnxRunner):
        def _graph(self, path: Path, providers: tuple[str, ...], threads: int) -> NumpyGraph:
            del providers, threads
            return load(path)

    return OnnxForm(Loaded(artifact))


class LlavaEngines(PromptRunner):
    """Engines on a GPU."""

    def __init__(self, runtime: EngineRuntime) -> None:
        self._slot = runtime.slot()
        manifest = runtime.engines.manifest.llava
        self._tokens, self._images = manifest.tokens, manifest.vision
        self.image = manifest.image

    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        is_image = input_ids[0] == self._tokens.image_token_id
        places = [np.flatnonzero(kind)[None].astype(np.int64) for kind in (is_image, ~is_image)]
        pixels = pixel_values if is_image.any() else None
        found = self._slot.prefill(pixels, input_ids, *places)
        kept = [found.kept[layer][0] for layer in sorted(found.kept)]
        if found.selected is not None:
            kept.insert(0, places_in_all(found.selected, self._images.tower_tokens)[0])
        return Prefilled(found.logits[0], kept, [], found.state)

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Greedy:
        logits, state = prefilled.logits, prefilled.state
        said = Greedy()
        while len(said.tokens) < max_new_tokens:
            last = said.add(logits)
            if last in self._tokens.eos_token_ids or len(said.tokens) == max_new_tokens:
                break
            rows, state = self._slot.step([last], state)
            logits = rows[0]
        return said


def llava_forms(artifact: LlavaArtifact) -> Iterator[Form | Skipped]:
    """ONNX Runtime, once more with the decoder that TensorRT compiles, and OpenVINO."""
    manifest, where = artifact.manifest, artifact.path.name
    name = f"ONNX Runtime ({where})"
    if manifest.precision == "bfloat16":
        yield Skipped(name, NO_BFLOAT16)
        yield openvino_form(artifact, lambda: OnnxForm(OpenVinoRunner(artifact)))
        return

    def form(name: str, load: Callable[[], Any]) -> Form:
        return Form(name, artifact.path, manifest.dense, manifest.precision, load)

    yield form(name, lambda: OnnxForm(OnnxRunner(artifact)))
    if manifest.flavour != "standard":
        return
    name = f"ONNX Runtime, caches in place ({where})"
    if computed_in(manifest.precision) != manifest.precision:
        pass  # such artifacts have no decoder for TensorRT
    elif _onnxruntime_version() < TENSOR_SCATTER_SINCE:
        since = ".".join(map(str, TENSOR_SCATTER_SINCE))
        yield Skipped(name, f"TensorScatter needs ONNX Runtime {since}")
    else:
        yield form(name, lambda: OnnxForm(InPlaceRunner(artifact)))
    yield openvino_form(artifact, lambda: OnnxForm(OpenVinoRunner(artifact)))


def _onnxruntime_version() -> tuple[int, ...]:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return tuple(int(part) for part in version(name).split(".")[:2])
        except PackageNotFoundError:
            continue
    return (0, 0)
