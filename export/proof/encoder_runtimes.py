"""The runtimes in which an encoder's artifact is verified."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from export.artifact.encoder_manifest import EncoderArtifact, EncoderManifest
from export.onnxruntime.graph import NO_BFLOAT16, LoadGraph, OrtGraph
from export.onnxruntime.named_graphs import NamedGraphs, NumpyGraphs
from export.proof.compare import Answered, Runner
from export.proof.interface import RuntimeVariant, Skipped
from export.proof.openvino import OpenVinoOutputs, openvino_variants


def graph_variants(
    artifact: EncoderArtifact, runner: Callable[[EncoderManifest, NamedGraphs], Runner]
) -> Iterator[RuntimeVariant | Skipped]:
    """Yield an artifact's variants in ONNX Runtime and OpenVINO; ``runner`` runs the family's graphs."""
    name, manifest = f"ONNX Runtime ({artifact.path.name})", artifact.manifest

    def load(graph: LoadGraph = OrtGraph) -> Runner:
        return runner(manifest, NumpyGraphs(artifact, graph))

    if manifest.precision == "bfloat16":
        yield Skipped(name, NO_BFLOAT16)
    else:
        yield RuntimeVariant.of(name, artifact, load)
    if manifest.flavour == "standard":
        outputs = partial(OpenVinoOutputs, precision=manifest.precision)
        yield from openvino_variants(
            artifact, lambda bfloat16: load(partial(outputs, bfloat16=bfloat16))
        )


def ranked(answers: list[Answered]) -> list[Answered]:
    """Add to each answer the best candidates both ways, and the margin to the next ones.

    Args:
        answers: answers to pairs; the first output has the embeddings of image and text.
    """
    embeds = np.stack([answer.outputs[0].values for answer in answers]).astype(np.float64)
    scores = embeds[:, 0] @ embeds[:, 1].T  # of every image with every text [n, n]
    best = [scores.argmax(1), scores.argmax(0)]
    margin = np.minimum(_lead(scores), _lead(scores.T))
    return [
        replace(answer, decision=[int(text), int(image)], margin=float(lead))
        for answer, text, image, lead in zip(answers, *best, margin, strict=True)
    ]


def _lead(scores: np.ndarray) -> np.ndarray:
    """The margin of each row's best over the best that is not equal to it, ``[n]``."""
    top = scores.max(1, keepdims=True)
    others = np.where(scores < top, scores, -np.inf).max(1)
    return top[:, 0] - others
