"""A family's part of an export: everything in which families differ."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.flops.token_drops import dropped_macs
from comp.plan import DropPlan, Workload
from export.artifact.encoder_manifest import EncoderManifest, TextInfo, TowerInfo
from export.artifact.manifest import Manifest
from export.configs.towers import TowersShape
from export.weights.checkpoint import WeightSource

Written = Callable[[str], None]


@dataclass(frozen=True)
class FamilyExport:
    """A checkpoint that is ready to be exported.

    Attributes:
        manifest: class of the family's manifest.
        graphs: names of the files that ``build`` writes, in order.
        build: writes the graphs and their external data into a directory, and reports each by name.
        fields: the manifest fields that only this family has.
        drops: where tokens are dropped.
        params: parameters in the graphs.
        macs: multiply-accumulates by part, on the workload.
        workload: the request that they are counted on.
    """

    manifest: type[Manifest]
    graphs: tuple[str, ...]
    build: Callable[[Path, Written], None]
    fields: dict[str, Any]
    drops: tuple[DropPlan, ...]
    params: int
    macs: dict[str, int]
    workload: Workload


def encoder_export(
    shape: TowersShape,
    weights: WeightSource,
    graphs: tuple[str, ...],
    build: Callable[[Path, Written], None],
    on: Workload,
    fields: dict[str, Any],
) -> FamilyExport:
    """The contribution of a CLIP or a BLIP.

    Args:
        shape: shape of the exported model.
        weights: the cut weights.
        graphs, build: see ``FamilyExport``.
        on: workload that multiply-accumulates are counted on.
        fields: fields of the manifest that differ between CLIP and BLIP.
    """
    vision, text = shape.sizes.vision, shape.sizes.text
    tower = TowerInfo(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        tokens=vision.tokens,
        hidden_size=vision.hidden_size,
    )
    read = TextInfo(max_position_embeddings=text.positions, hidden_size=text.hidden_size)
    return FamilyExport(
        manifest=EncoderManifest,
        graphs=graphs,
        build=build,
        fields={"vision": tower, "text": read, "drops": shape.drops} | fields,
        drops=shape.drops,
        params=parameters(weights),
        macs=dropped_macs(shape.sizes, on, shape.drops),
        workload=on,
    )


UNUSED = ("position_ids",)  # buffers that old releases saved


def parameters(weights: WeightSource) -> int:
    """Number of parameters in a checkpoint's tensors, without buffers."""
    return sum(
        math.prod(weights.shape(name)) for name in weights.names() if not name.endswith(UNUSED)
    )
