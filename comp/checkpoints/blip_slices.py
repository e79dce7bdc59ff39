"""Map heads and channels of a BLIP to rows and columns of its tensors.

Names are those of ``transformers`` and of ``BlipForNlvr2``. Language blocks are counted through the text
encoder and then the decoder; cross blocks are the branches of cross-attention, counted likewise
(``comp.checkpoints.shapes.cross_key``), and have heads only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from comp.checkpoints.shapes import cross_key
from comp.checkpoints.slices import Cut, spread
from comp.plan import BlockPlan, Part, PruningPlan

_NAME = re.compile(
    r"^(vision_model|text_encoder|text_decoder\.bert)\.encoder\.layers?\.(\d+)\.(.+)\.(weight|bias)$"
)
_BRANCH = re.compile(r"^crossattention\.(?:self|output\.dense)([01]?)(?:\.(?:query|key|value))?$")
_HEADS_OUT = frozenset({"attention.self.query", "attention.self.key", "attention.self.value"})
_HEADS_IN = frozenset({"attention.output.dense", "self_attn.projection"})
_CHANNELS_OUT = frozenset({"intermediate.dense", "mlp.fc1"})
_CHANNELS_IN = frozenset({"output.dense", "mlp.fc2"})
_FUSED = "self_attn.qkv"


@dataclass(frozen=True)
class BlipCuts:
    """The cuts of one plan.

    Attributes:
        plan: the plan.
        head_dim: head size of each part.
        encoder_blocks: blocks of the text encoder; 0 where there is only a decoder.
        branches: number of branches of cross-attention in a block.
    """

    plan: PruningPlan
    head_dim: Mapping[Part, int]
    encoder_blocks: int
    branches: int = 1

    def of(self, name: str) -> Cut | None:
        """Return the cut of a tensor by its name; ``None`` if it stays whole."""
        match = _NAME.match(name)
        if match is None:
            return None
        model, number, module, kind = match[1], int(match[2]), match[3], match[4]
        number += self.encoder_blocks if model == "text_decoder.bert" else 0
        branch = _BRANCH.match(module)
        if branch is not None:
            block = self._block(*cross_key(number, int(branch[1] or 0), self.branches))
            inputs = module.startswith("crossattention.output")
            cut = None if block is None else Cut(int(inputs), self._heads(block))
        else:
            block = self._block("vision" if model == "vision_model" else "language", number)
            cut = None if block is None else self._own(module, block)
        if cut is None or (kind == "bias" and cut.axis == 1):
            return None
        return cut

    def _block(self, part: Part, index: int) -> BlockPlan | None:
        return next((b for b in self.plan.blocks if (b.part, b.index) == (part, index)), None)

    def _heads(self, block: BlockPlan) -> tuple[int, ...]:
        return spread(block.kept_heads, self.head_dim[block.part])

    def _own(self, module: str, block: BlockPlan) -> Cut | None:
        """Return the cut of a module of a block's self-attention or FFN."""
        heads = self._heads(block)
        if module == _FUSED:
            width = block.num_attention_heads * self.head_dim[block.part]
            return Cut(0, tuple(which * width + row for which in range(3) for row in heads))
        if module in _HEADS_OUT or module in _HEADS_IN:
            return Cut(int(module in _HEADS_IN), heads)
        if module in _CHANNELS_OUT or module in _CHANNELS_IN:
            return Cut(int(module in _CHANNELS_IN), block.kept_channels)
        return None
