"""Describe a BLIP export: its graphs, and its manifest fields."""

from pathlib import Path
from typing import Any

from comp.checkpoints.blip_slices import BlipCuts
from comp.plan import Part, PruningPlan, Workload, images_of
from export.artifact.encoder_manifest import GRAPHS, DecoderInfo
from export.configs.blip import BlipShape, blip_of
from export.families.blip.graphs import build_blip_graphs
from export.families.contribution import FamilyExport, encoder_export
from export.graph.builder import Target
from export.weights.checkpoint import CheckpointWeights, WeightSource
from export.weights.slim import SlimWeights

TEXT_TOKENS = 20  # of the workload, if there is no plan


def blip_artifact(
    checkpoint: Path,
    config: dict[str, Any],
    target: Target,
    plan: PruningPlan | None,
    workload: Workload | None,
) -> FamilyExport:
    """See ``export.families.contribution``."""
    shape = blip_of(config, str(checkpoint))
    weights: WeightSource = CheckpointWeights(checkpoint, naming=str)
    if plan is not None:
        text = shape.sizes.text.head_dim
        dims: dict[Part, int] = {
            "vision": shape.sizes.vision.head_dim,
            "language": text,
            "cross": text,
        }
        encoder_blocks = 0 if shape.encoder is None else len(shape.encoder.blocks)
        weights = SlimWeights(weights, BlipCuts(plan, dims, encoder_blocks, shape.branches).of)
        shape = shape.pruned(plan)
    vision = shape.sizes.vision
    images = images_of(shape.task) * vision.tokens
    on = workload or Workload(image_tokens=images, text_tokens=TEXT_TOKENS)
    return encoder_export(
        shape,
        weights,
        GRAPHS["blip", shape.task],
        lambda out, written: build_blip_graphs(shape, weights, target, out, written),
        on,
        {"task": shape.task, "decoder": _decoder(shape)},
    )


def _decoder(shape: BlipShape) -> DecoderInfo | None:
    sizes = shape.decoder
    if sizes is None:
        return None
    return DecoderInfo(
        head_dim=sizes.head_dim,
        num_attention_heads=tuple(block.heads for block in sizes.blocks),
        num_cross_attention_heads=tuple(block.cross_heads[0] for block in sizes.blocks),
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.positions,
        bos_token_id=shape.bos,
        eos_token_id=shape.sep,
    )
