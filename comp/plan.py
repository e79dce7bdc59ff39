"""The pruning plan: which heads, channels and tokens stay. The single contract between the stages.

A plan is immutable data with a version and a JSON schema (``PruningPlan.model_json_schema()``).
Indices always refer to the dense model.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from comp.errors import CompExportError
from comp.registry import family_called
from comp.utils.files import write_text
from comp.utils.versioned_json import read_versioned, validated

PLAN_VERSION: Final = 1
KEEP_UNIT = 1000  # keep ratios are whole thousandths, so that ceil(ratio * n) is exact everywhere

Part = Literal["vision", "language", "cross"]
PARTS: tuple[Part, ...] = ("vision", "language", "cross")
RateOf = Literal["flops", "latency"]  # what a rate is a share of
Task = Literal["question", "retrieval", "caption", "statement"]  # what a model is asked to do
# What becomes of dropped tokens: gone; each joins the most similar kept one; all join the weakest kept one;
# as similar, and what tokens stand for raises the attention they get.
Merge = Literal["none", "similar", "one", "proportional"]
Place = tuple[Part, int]  # where tokens are dropped: a part, and the blocks of it passed before
Ranking = Literal[  # see docs/formats.md
    "received", "mean_head", "next_layer", "diversity", "informativity", "aligned", "matched"
]
DECODER_RANKINGS = ("mean_head", "next_layer", "diversity")  # of LLaVA's language part alone
ENCODER_RANKINGS = ("informativity", "aligned", "matched")  # of CLIP and BLIP alone
PIVOTS = 4  # tokens of each kind that others are compared with by "diversity", as in DART
LARGEST = 2**31 - 1  # heads, channels or tokens
MOST_MACS = 2**63 - 1
RATE_TOLERANCE = 1e-2  # how far a rate may be from that of the costs beside it: it may be rounded
Index = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]


def keep_count(n: int, keep_ratio: float) -> int:
    """How many of ``n`` tokens stay: ``ceil(keep_ratio * n)`` in whole thousandths (exact).

    The exported graphs compute the same number from shapes with integer arithmetic.
    """
    return -(-n * round(keep_ratio * KEEP_UNIT) // KEEP_UNIT)


def _ascend(numbers: Sequence[int]) -> bool:
    """Whether each is larger than the one before."""
    return all(one < other for one, other in pairwise(numbers))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BlockPlan(_Frozen):
    """One Transformer block: its dense sizes and what stays of it.

    ``kept_key_value_heads`` are KV groups; under grouped-query attention the query heads of a kept
    group stay with it (without it, one query head a group). Cross-attention has heads and no channels.
    """

    part: Part
    index: Index = Field(description="position within its part, from 0")
    num_attention_heads: Count
    num_key_value_heads: Count
    intermediate_size: Index
    kept_key_value_heads: tuple[Index, ...] = Field(min_length=1)
    kept_channels: tuple[Index, ...]

    @model_validator(mode="after")
    def _keeps_what_is_there(self) -> "BlockPlan":
        """Indices ascend and are of the block; query heads are shared out evenly."""
        where = f"{self.part} block {self.index}"
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{where} has {self.num_attention_heads} query heads for "
                f"{self.num_key_value_heads} KV heads, which is not a whole number for each"
            )
        for name, kept, size in (
            ("kept_key_value_heads", self.kept_key_value_heads, self.num_key_value_heads),
            ("kept_channels", self.kept_channels, self.intermediate_size),
        ):
            if not _ascend(kept) or (kept and kept[-1] >= size):
                raise ValueError(f"{where}: {name} must ascend within 0..{size - 1}, each once")
        return self

    @model_validator(mode="after")
    def _has_channels(self) -> "BlockPlan":
        """Every block but one of cross-attention keeps some."""
        if (self.part == "cross") != (self.intermediate_size == 0):
            raise ValueError(f"a {self.part} block of {self.intermediate_size} channels")
        if bool(self.kept_channels) != bool(self.intermediate_size):
            raise ValueError(f"{self.part} block {self.index} keeps no channel")
        return self

    @property
    def group_size(self) -> int:
        """Query heads a KV head serves."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def kept_heads(self) -> tuple[int, ...]:
        """Query heads that stay, ascending."""
        size = self.group_size
        return tuple(group * size + i for group in self.kept_key_value_heads for i in range(size))


class DropPlan(_Frozen):
    """A place where tokens are dropped: the shares that stay behind so many blocks of a part.

    What is dropped goes between the attention and the FFN of the block before. A part that holds no
    tokens of a kind keeps all of that kind.
    """

    part: Part = Field(default="language", description="whose blocks are counted")
    after_layer: Count = Field(description="blocks passed before tokens are dropped")
    vision_keep_ratio: float = Field(gt=0, le=1)
    text_keep_ratio: float = Field(gt=0, le=1)
    ranking: Ranking = Field(
        default="received",
        description="what ranks the tokens: the attention they receive from the strongest head "
        "(Eq. 6), from all heads on average, from those of the next block, how little they repeat, how "
        "informative they are, MADTP's three scores, or CrossGET's matching",
    )
    merge: Merge = Field(default="none", description="what becomes of the tokens that are dropped")

    @model_validator(mode="after")
    def _keeps_some(self) -> "DropPlan":
        """A ratio counts in whole thousandths: one that rounds to none of them keeps nothing."""
        least = min(self.shares)
        if round(least * KEEP_UNIT) < 1:
            raise ValueError(
                f"a keep ratio of {least} after {self.part} block {self.after_layer} is less than a "
                "thousandth"
            )
        return self

    @property
    def keep_ratio(self) -> float:
        """Of a part whose tokens are of one kind, the share that stays."""
        return self.vision_keep_ratio if self.part == "vision" else self.text_keep_ratio

    @property
    def shares(self) -> tuple[float, float]:
        """Keep ratios of vision and text tokens."""
        return self.vision_keep_ratio, self.text_keep_ratio

    @property
    def place(self) -> Place:
        return self.part, self.after_layer


Drops = tuple[DropPlan, ...]


def shares_of(drops: Drops) -> dict[Place, tuple[float, float]]:
    """Shares of vision and text tokens that drops keep, by place."""
    return {drop.place: drop.shares for drop in drops}


class ImageSelection(_Frozen):
    """What is left of each image's tokens between a LLaVA's vision tower and its projector (VisionZip).

    ``dominant`` tokens stay as they are, those that [CLS] attends to most; the rest of them become
    ``contextual`` ones, each the mean of what is alike.
    """

    tower_tokens: Count = Field(description="tokens of an image that the tower gives")
    dominant: Count = Field(description="tokens that stay as they are")
    contextual: Index = Field(description="tokens that all others are merged into")

    @model_validator(mode="after")
    def _are_there(self) -> "ImageSelection":
        if self.count > self.tower_tokens:
            raise ValueError(
                f"{self.dominant} dominant and {self.contextual} contextual tokens of an image of "
                f"{self.tower_tokens}"
            )
        return self

    @property
    def count(self) -> int:
        """Tokens that are left of an image."""
        return self.dominant + self.contextual

    def arriving(self, image_tokens: int) -> int:
        """How many of so many image tokens of the tower get on; an image begun counts whole."""
        return -(-image_tokens // self.tower_tokens) * self.count

    @property
    def target_places(self) -> list[int]:
        """Which of an image's tokens that are not dominant others join.

        Every s-th of the r that are not, s = floor(r / contextual), the first ones.
        """
        if self.contextual == 0:
            return []
        rest = self.tower_tokens - self.dominant
        return list(range(0, rest, rest // self.contextual))[: self.contextual]


class Workload(_Frozen):
    """What FLOPs are counted on: one prompt of so many image and text tokens.

    Image tokens are those that the vision tower of the dense model gives.
    """

    image_tokens: Index
    text_tokens: Count


class PruningPlan(_Frozen):
    """What to remove from which model; see ``docs/formats.md``."""

    version: Literal[1] = PLAN_VERSION
    family: str
    task: Task | None = Field(
        default=None, description="what the model is asked to do; BLIP's models differ by it"
    )
    model: str = Field(description="name or path of the dense checkpoint")
    method: str
    rate: float = Field(description="share of what rate_of says that is removed (achieved)")
    rate_of: RateOf = Field(
        default="flops", description="multiply-accumulates, or predicted time to the first token"
    )
    workload: Workload
    macs_dense: int = Field(gt=0, le=MOST_MACS)
    macs: int = Field(gt=0, le=MOST_MACS)
    milliseconds_dense: float | None = Field(
        default=None,
        gt=0,
        description="predicted time to the first token before, if a table was given",
    )
    milliseconds: float | None = Field(default=None, gt=0, description="and after")
    position_ids: Literal["kept"] = "kept"
    blocks: tuple[BlockPlan, ...]
    drops: tuple[DropPlan, ...] = ()
    image_selection: ImageSelection | None = Field(
        default=None, description="what is left of an image behind a LLaVA's tower; none: all of it"
    )

    @model_validator(mode="after")
    def _can_rank(self) -> "PruningPlan":
        family = family_called(self.family)
        decodes = family is not None and family.reads_image_tokens
        if self.image_selection is not None and not decodes:
            raise ValueError(
                f"image_selection in a {self.family}: only a llava hands image tokens to a projector"
            )
        for drop in self.drops:
            of_decoder = decodes and drop.part == "language"
            if drop.ranking in DECODER_RANKINGS and not of_decoder:
                raise ValueError(
                    f"ranking {drop.ranking!r} in the {drop.part} part of a {self.family}: only the "
                    "language part of a llava ranks so"
                )
            of_encoder = drop.ranking in ENCODER_RANKINGS or drop.merge != "none"
            if of_encoder and decodes:
                raise ValueError(
                    f"ranking {drop.ranking!r} and merge {drop.merge!r} in a llava: its tokens are not "
                    "ranked or merged as those of clip and blip are"
                )
            if drop.merge == "proportional" and not (family and family.merges_in_proportion):
                raise ValueError(
                    f"merge 'proportional' in a {self.family}: only attention in the towers of a clip is "
                    "raised by what tokens stand for"
                )
        return self

    @model_validator(mode="after")
    def _names_each_once(self) -> "PruningPlan":
        """Blocks of a part and the places of its drops ascend."""
        for part in PARTS:
            blocks = [block.index for block in self.part(part)]
            places = [drop.after_layer for drop in self.drops if drop.part == part]
            for what, found in (("blocks", blocks), ("drops after blocks", places)):
                if not _ascend(found):
                    shown = ", ".join(str(number) for number in found[:8])
                    more = ", …" if len(found) > 8 else ""
                    raise ValueError(
                        f"{what} {shown}{more} of the {part} part must ascend, each named once"
                    )
        return self

    def check_rate(self) -> None:
        """Refuse a rate that is not that of the costs beside it.

        Raises:
            ValueError: names both.
        """
        before, after = float(self.macs_dense), float(self.macs)
        what = f"macs {self.macs} of {self.macs_dense}"
        if self.rate_of == "latency":
            if not (self.milliseconds_dense and self.milliseconds):
                raise ValueError("a rate of latency without milliseconds")
            before, after = self.milliseconds_dense, self.milliseconds
            what = f"milliseconds {after} of {before}"
        found = 1 - after / before
        if abs(self.rate - found) > RATE_TOLERANCE:
            raise ValueError(f"rate {self.rate} with {what}, which is a rate of {found:.4f}")

    @property
    def flops_rate(self) -> float:
        """Share of the multiply-accumulates removed, whatever the rate is of."""
        return self.rate if self.rate_of == "flops" else 1 - self.macs / self.macs_dense

    def part(self, part: Part) -> tuple[BlockPlan, ...]:
        """The blocks of one part, in order."""
        return tuple(block for block in self.blocks if block.part == part)

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan.

        Raises:
            CompExportError: when the file is missing, is no plan, is of another version, or has a rate that
                is not that of its costs.
        """
        again = "run `comp-export prune` again"
        absent = f"no plan at {path}", "run `comp-export prune` first"
        found = read_versioned(path, "a plan", PLAN_VERSION, absent, again)
        plan = validated(cls, found, path, again)
        try:
            plan.check_rate()
        except ValueError as error:
            raise CompExportError(f"{path}: {error}; {again}") from error
        return plan
