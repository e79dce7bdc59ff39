"""The ``pruning`` entry of a slim ``config.json``: sizes of blocks, token drops, image selection.

Written from a plan, read back by shapes and by the slim classes of all families. A part that is not pruned
may be missing, as may drops; unknown keys of later releases are ignored.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from comp.errors import CompExportError
from comp.plan import PARTS, DropPlan, ImageSelection, PruningPlan
from comp.registry.families import family_called
from comp.utils.versioned_json import first_wrong

KEY, HEADS = "pruning", "num_attention_heads"
WIDEST = 2**20
Width = Annotated[int, Field(strict=True, ge=1, le=WIDEST)]  # channels or heads


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PartSizes(_Read):
    """Sizes of the blocks of a part; a LLaVA's language part counts KV heads."""

    num_attention_heads: tuple[Width, ...] | None = None
    num_key_value_heads: tuple[Width, ...] | None = None
    intermediate_size: tuple[Width, ...] | None = None

    @property
    def heads(self) -> tuple[int, ...]:
        """KV heads of each block where they are counted, otherwise heads."""
        return self.num_key_value_heads or self.num_attention_heads or ()

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Heads and channels of each block."""
        return list(zip(self.heads, self.intermediate_size or (), strict=True))


class PruningEntry(_Read):
    """Heads and channels left of each part; ``cross`` has heads alone, of each branch of each block."""

    vision: PartSizes | None = None
    language: PartSizes | None = None
    cross: PartSizes | None = None
    drops: tuple[DropPlan, ...] | None = None
    image_selection: ImageSelection | None = None

    @model_validator(mode="after")
    def _has_whole_blocks(self) -> "PruningEntry":
        for name, part in (("vision", self.vision), ("language", self.language)):
            channels = (part and part.intermediate_size) or ()
            if part and len(part.heads) != len(channels):
                raise ValueError(
                    f"{name} has heads of {len(part.heads)} blocks and channels of {len(channels)}"
                )
        return self

    @classmethod
    def of_plan(cls, plan: PruningPlan) -> "PruningEntry":
        """Return the sizes that a plan leaves; parts that it does not name are missing."""
        family = family_called(plan.family)
        grouped = family is not None and family.reads_image_tokens
        left: dict[str, PartSizes] = {}
        for part in PARTS:
            blocks = plan.part(part)
            if not blocks:
                continue
            heads = tuple(len(block.kept_key_value_heads) for block in blocks)
            counted = "num_key_value_heads" if grouped and part == "language" else HEADS
            sizes = {counted: heads}
            if part != "cross":
                sizes["intermediate_size"] = tuple(len(block.kept_channels) for block in blocks)
            left[part] = PartSizes(**sizes)
        return cls(**left, drops=plan.drops, image_selection=plan.image_selection)

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "config.json") -> "PruningEntry":
        """Read the entry of a configuration; one without it leaves everything whole.

        Raises:
            CompExportError: an invalid field, by name; ``where`` names the file.
        """
        try:
            return cls.model_validate(config.get(KEY) or {})
        except ValidationError as error:
            raise CompExportError(
                f"{where}: {KEY}.{first_wrong(error)}; prune the model again"
            ) from error

    @classmethod
    def of_config(cls, config: Any) -> "PruningEntry":
        """Read the entry of a configuration of transformers, slim or dense."""
        return cls.read({KEY: getattr(config, KEY, None)})

    def to_json(self) -> dict[str, Any]:
        """Return the entry as ``config.json`` holds it, without the parts that are whole."""
        found = self.model_dump(mode="json", exclude={"drops"})
        parts = {
            name: {key: value for key, value in values.items() if value is not None}
            for name, values in found.items()
            if values is not None
        }
        return parts | {"drops": [drop.model_dump() for drop in self.drops or ()]}
