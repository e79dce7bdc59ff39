"""Plans and the blocks of their models: whether a plan is of a model, and what it does not name."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from comp.errors import CompExportError
from comp.plan import BlockPlan, PruningPlan

if TYPE_CHECKING:
    from comp.masks import BlockShape


def check_plan_is_of(plan: PruningPlan, blocks: "Iterable[BlockShape]", model: str) -> None:
    """Refuse a plan whose blocks the dense model does not have.

    Raises:
        CompExportError: naming the first.
    """
    have = {block.key: (block.num_attention_heads, block.intermediate_size) for block in blocks}
    for block in plan.blocks:
        key = block.part, block.index
        wanted = block.num_attention_heads, block.intermediate_size
        if have.get(key) != wanted:
            found = (
                "is missing" if key not in have else "has {} heads, {} channels".format(*have[key])
            )
            raise CompExportError(
                f"{model} is not the dense model of the plan: its block {block.part} {block.index} {found}, "
                f"the plan's has {wanted[0]} and {wanted[1]}; pass the model it was made for with --model"
            )


def block_plan(block: "BlockShape", groups: Iterable[int], channels: Iterable[int]) -> BlockPlan:
    """The plan of a block that keeps these KV heads and these channels."""
    return BlockPlan(
        part=block.part,
        index=block.index,
        num_attention_heads=block.num_attention_heads,
        num_key_value_heads=block.num_key_value_heads,
        intermediate_size=block.intermediate_size,
        kept_key_value_heads=tuple(groups),
        kept_channels=tuple(channels),
    )


def whole_blocks(blocks: "Iterable[BlockShape]") -> tuple[BlockPlan, ...]:
    """Plans that leave every block as it is."""
    return tuple(
        block_plan(block, range(block.num_key_value_heads), range(block.intermediate_size))
        for block in blocks
    )


def completed(plan: PruningPlan, blocks: "Iterable[BlockShape]") -> PruningPlan:
    """The plan with every block of its model: those that it does not name are whole."""
    named = {(block.part, block.index): block for block in plan.blocks}
    whole = whole_blocks(blocks)
    filled = tuple(named.pop((block.part, block.index), block) for block in whole)
    return plan.model_copy(update={"blocks": (*filled, *named.values())})
