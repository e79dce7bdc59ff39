"""Choose the parts of a decoder that stay in float32 when the rest is float16."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.artifact.manifest import Activations

FLOAT16_MOST = 65504.0  # the largest number of float16
CAREFUL = FLOAT16_MOST / 4  # a safety factor of 4: other prompts may go higher
SHOWN = 6  # names in a line
_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.(.+)")
_NORM = "model.language_model.norm"
_HEAD = "lm_head"


@dataclass(frozen=True)
class Wide:
    """The parts of a LLaVA's decoder that are computed in float32.

    Attributes:
        residual_from: the block from which the residual stream and its norms are in float32.
        outputs: blocks whose attention output projection is.
        ffn: blocks whose FFN is.
        head: whether the layer that computes logits is.
    """

    residual_from: int | None = None
    outputs: frozenset[int] = frozenset()
    ffn: frozenset[int] = frozenset()
    head: bool = False

    def residual(self, block: int) -> bool:
        """Whether the input of a block's residual stream is in float32."""
        return self.residual_from is not None and block >= self.residual_from

    @property
    def names(self) -> tuple[str, ...]:
        """The parts in float32, for reports."""
        residual = [] if self.residual_from is None else [f"residual from {self.residual_from}"]
        return (
            *residual,
            *(f"layers.{block}.self_attn.o_proj" for block in sorted(self.outputs)),
            *(f"layers.{block}.mlp" for block in sorted(self.ffn)),
            *([_HEAD] if self.head else []),
        )


NONE = Wide()


def wide_of(largest: Mapping[str, float]) -> tuple[Wide, tuple[str, ...]]:
    """Choose the parts to keep in float32, and list the modules that exceed float16 and cannot be kept.

    Args:
        largest: largest absolute values, by name of the module that reads or gives them.
    """
    stream, outputs, ffn, beyond = set[int](), set[int](), set[int](), []
    head = False
    blocks = [int(layer[1]) for layer in map(_LAYER.fullmatch, largest) if layer]
    for name, value in largest.items():
        if value <= CAREFUL:
            continue
        layer = _LAYER.fullmatch(name)
        if name == _NORM:
            stream.add(max(blocks))
        elif name == _HEAD:
            head = True
        elif layer is None:
            beyond.append(name)
        elif layer[2] == "input_layernorm":  # reads the output of the block before
            stream.add(max(int(layer[1]) - 1, 0))
        elif layer[2] == "post_attention_layernorm":
            stream.add(int(layer[1]))
        elif layer[2] == "self_attn.o_proj":
            outputs.add(int(layer[1]))
        elif layer[2].startswith("mlp."):
            ffn.add(int(layer[1]))
        else:
            beyond.append(name)
    first = min(stream | outputs | ffn, default=None)
    return Wide(first, frozenset(outputs), frozenset(ffn), head), tuple(beyond)


def overflow_warning(which: str, activations: Activations) -> str | None:
    """A warning about an artifact or engines that may overflow; ``None`` if nothing may."""
    if not activations.beyond:
        return None
    return (
        f"WARNING: {which}: {listed(activations.beyond)} may overflow in float16, and `run` then ends with "
        "an error: take --precision float32, or with --flavour standard --precision bfloat16"
    )


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
