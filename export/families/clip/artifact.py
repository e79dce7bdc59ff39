"""Describe a CLIP export: its graphs, and its manifest fields."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from comp.checkpoints.slices import CLIP, cut_of
from comp.errors import CompExportError
from comp.plan import PruningPlan, Workload
from export.artifact.encoder_manifest import LARGEST_SCALE
from export.configs.clip import ClipShape, clip_of
from export.families.clip.graphs import TEXT_GRAPH, VISION_GRAPH, build_clip_graphs
from export.families.contribution import FamilyExport, encoder_export
from export.graph.builder import Target
from export.weights.checkpoint import CheckpointWeights, WeightSource
from export.weights.slim import SlimWeights

LOGIT_SCALE = "logit_scale"


def clip_artifact(
    checkpoint: Path,
    config: dict[str, Any],
    target: Target,
    plan: PruningPlan | None,
    workload: Workload | None,
) -> FamilyExport:
    """See ``export.families.contribution``."""
    shape = clip_of(config, str(checkpoint))
    weights = clip_weights(checkpoint, shape, plan)
    if plan is not None:
        shape = shape.pruned(plan)
    vision, text = shape.sizes.vision, shape.sizes.text
    on = workload or Workload(image_tokens=vision.tokens, text_tokens=text.positions)
    return encoder_export(
        shape,
        weights,
        (VISION_GRAPH, TEXT_GRAPH),
        lambda out, written: build_clip_graphs(shape, weights, target, out, written),
        on,
        {
            "task": "retrieval",
            "logit_scale": _scale(weights, checkpoint),
            "end_of_text": shape.end_of_text,
        },
    )


def clip_weights(checkpoint: Path, shape: ClipShape, plan: PruningPlan | None) -> WeightSource:
    """The tensors of a checkpoint, cut by a plan."""
    source = CheckpointWeights(checkpoint, naming=str)
    if plan is None:
        return source
    head_dim = {"vision": shape.sizes.vision.head_dim, "language": shape.sizes.text.head_dim}
    return SlimWeights(source, lambda name: cut_of(name, plan, head_dim, CLIP))


def _scale(weights: WeightSource, checkpoint: Path) -> float:
    """The factor of cosines; checkpoints store its logarithm.

    Raises:
        CompExportError: it is not a number above 0, or so large that scores would overflow.
    """
    logarithm = float(weights.read(LOGIT_SCALE).astype(np.float64).reshape(()))
    if not abs(logarithm) <= math.log(LARGEST_SCALE):
        raise CompExportError(
            f"{checkpoint}: {LOGIT_SCALE} is {logarithm:g}, and cosines are multiplied with its exponential, "
            f"which must be a number up to {LARGEST_SCALE:g} (CLIP's own is 4.6): compare the checkpoint "
            "with the original"
        )
    return math.exp(logarithm)
