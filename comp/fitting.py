"""Whether a plan is of a model."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from comp.errors import CompExportError
from comp.plan import PruningPlan

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
