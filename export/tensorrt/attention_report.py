"""Report how TensorRT compiles each block's attention and caches, read from the network.

An attention boundary that TensorRT must not split is either one fused kernel or a failed build; so
after a build its presence is the proof. On a GPU, ``engine_kernels`` shows the kernels.
"""

import json
import re
from collections import Counter
from typing import Any, Literal

from export.artifact.manifest import Frozen
from export.tensorrt.library import TensorRT

AttentionKind = Literal["fused", "decomposed"]
BLOCK = re.compile(r"(layers\.\d+(?:/cross\d?)?)/")  # cross-attention is listed separately


class BlockReport(Frozen):
    """The attention of one Transformer block of an engine; ``layers.0/cross`` is its cross-attention."""

    block: str
    attention: AttentionKind
    caches_in_place: int = 0


def inspect_network(tensorrt: TensorRT, network: Any) -> tuple[BlockReport, ...]:
    """Every attention with its caches, in order; empty for a graph without blocks."""
    kinds = tensorrt.module.LayerType
    fused: set[str] = set()
    written_out: set[str] = set()
    caches: Counter[str] = Counter()
    blocks: dict[str, None] = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        match = BLOCK.match(layer.name)
        if match is None:
            continue
        blocks[match[1]] = None
        if layer.type == kinds.ATTENTION_INPUT:
            fused.add(match[1])
        elif layer.type == kinds.SOFTMAX:
            written_out.add(match[1])
        elif layer.type == kinds.KV_CACHE_UPDATE:
            caches[match[1]] += 1
    return tuple(
        BlockReport(
            block=block,
            attention="fused" if block in fused else "decomposed",
            caches_in_place=caches[block],
        )
        for block in blocks
        if block in fused | written_out  # blocks without attention only project
    )


def engine_kernels(tensorrt: TensorRT, engine: Any) -> tuple[str, ...]:
    """Names of a built engine's layers, as its inspector gives them (needs a GPU)."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return tuple(layer if isinstance(layer, str) else layer.get("Name", "") for layer in layers)
