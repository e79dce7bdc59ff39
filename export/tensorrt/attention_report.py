"""What TensorRT makes of each block's attention and caches, read from the network.

An attention boundary that TensorRT may not take apart is either one fused kernel or a build that
fails; so after a build its presence is the proof. On a GPU, ``engine_kernels`` shows what runs.
"""

import json
import re
from collections import Counter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from export.tensorrt.library import TensorRT

Form = Literal["fused", "decomposed"]
BLOCK = re.compile(r"(layers\.\d+(?:/cross\d?)?)/")  # cross-attention counts by itself


class BlockReport(BaseModel):
    """The attention of one Transformer block of an engine; ``layers.0/cross`` is its cross-attention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str
    attention: Form
    caches_in_place: int = 0


def inspect_network(tensorrt: TensorRT, network: Any) -> tuple[BlockReport, ...]:
    """Every attention with its caches, in order; nothing for a graph without blocks."""
    kinds = tensorrt.module.LayerType
    fused: set[str] = set()
    written_out: set[str] = set()
    caches: Counter[str] = Counter()
    blocks: dict[str, None] = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        found = BLOCK.match(layer.name)
        if found is None:
            continue
        blocks[found[1]] = None
        if layer.type == kinds.ATTENTION_INPUT:
            fused.add(found[1])
        elif layer.type == kinds.SOFTMAX:
            written_out.add(found[1])
        elif layer.type == kinds.KV_CACHE_UPDATE:
            caches[found[1]] += 1
    return tuple(
        BlockReport(
            block=block,
            attention="fused" if block in fused else "decomposed",
            caches_in_place=caches[block],
        )
        for block in blocks
        if block in fused | written_out  # others only project
    )


def engine_kernels(tensorrt: TensorRT, engine: Any) -> tuple[str, ...]:
    """Names of the layers of a built engine, as its inspector gives them (needs a GPU)."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return tuple(layer if isinstance(layer, str) else layer.get("Name", "") for layer in layers)
