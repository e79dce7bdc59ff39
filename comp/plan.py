"""The pruning plan: the heads, channels and tokens that stay; the one interface between pruning and export.

A plan is immutable data with a version and a JSON schema (``PruningPlan.model_json_schema()``).
Indices always refer to the dense model.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from comp.errors import CompExportError
from comp.registry.families import family_called
from comp.utils.files import write_text
from comp.utils.versioned_json import read_versioned, validated

PLAN_VERSION: Final = 1
KEEP_UNIT = 1000  # keep ratios are whole thousandths, so that ceil(ratio * n) is exact everywhere

KEYS = ("blocks", "workload")  # that every plan has

Part = Literal["vision", "language", "cross"]
PARTS: tuple[Part, ...] = ("vision", "language", "cross")
RateOf = Literal["flops", "latency"]  # what a rate is a share of
Task = Literal["question", "retrieval", "caption", "statement"]  # task of a model
STATEMENT_IMAGES = 2  # that a statement is about
# Merging of dropped tokens: not at all; each into the most similar kept one; all into the weakest kept one;
# as similar, with attention raised by the number of merged tokens.
Merge = Literal["none", "similar", "one", "proportional"]
Place = tuple[Part, int]  # drop place: a part, and the number of its blocks passed before
Ranking = Literal[  # see docs/reference/formats.md
    "received", "mean_head", "next_layer", "diversity", "informativity", "aligned", "matched"
]
DECODER_RANKINGS = ("mean_head", "next_layer", "diversity")  # only in LLaVA's language part
ENCODER_RANKINGS = ("informativity", "aligned", "matched")  # only in CLIP and BLIP
PIVOTS = 4  # pivot tokens of each kind in "diversity", as in DART
LARGEST = 2**31 - 1  # heads, channels or tokens
MOST_MACS = 2**63 - 1
RATE_TOLERANCE = 1e-2  # between a rate, which may be rounded, and that of the recorded costs
Index = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]


def keep_count(n: int, keep_ratio: float) -> int:
    """Number of ``n`` tokens that stay: ``ceil(keep_ratio * n)`` in whole thousandths (exact).

    The exported graphs compute the same number from shapes with integer arithmetic.
    """
    return -(-n * round(keep_ratio * KEEP_UNIT) // KEEP_UNIT)


def images_of(task: Task | None) -> int:
    """Number of images of one request of a task."""
    return STATEMENT_IMAGES if task == "statement" else 1


def _ascend(numbers: Sequence[int]) -> bool:
    """Whether each number is larger than the one before."""
    return all(one < other for one, other in pairwise(numbers))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BlockPlan(_Frozen):
    """One Transformer block: its dense sizes, and the heads and channels that stay.

    ``kept_key_value_heads`` are KV groups; their query heads stay with them (one for each group without
    grouped-query attention). Cross-attention has heads but no channels.
    """

    part: Part
    index: Index = Field(description="position within its part, from 0")
    num_attention_heads: Count
    num_key_value_heads: Count
    intermediate_size: Index
    kept_key_value_heads: tuple[Index, ...] = Field(min_length=1)
    kept_channels: tuple[Index, ...]

    @model_validator(mode="after")
    def _check_kept(self) -> "BlockPlan":
        """Check that indices ascend within the block, and that KV heads divide query heads."""
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
    def _check_channels(self) -> "BlockPlan":
        """Check that every block except cross-attention keeps channels."""
        if (self.part == "cross") != (self.intermediate_size == 0):
            raise ValueError(f"a {self.part} block of {self.intermediate_size} channels")
        if bool(self.kept_channels) != bool(self.intermediate_size):
            raise ValueError(f"{self.part} block {self.index} keeps no channel")
        return self

    @property
    def group_size(self) -> int:
        """Number of query heads for each KV head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def kept_heads(self) -> tuple[int, ...]:
        """Query heads that stay, ascending."""
        size = self.group_size
        return tuple(group * size + i for group in self.kept_key_value_heads for i in range(size))


class DropPlan(_Frozen):
    """A place where tokens are dropped, and the shares that stay.

    Tokens are dropped between the attention and the FFN of block ``after_layer``, counted from 1. The ratio
    of a kind of token that a part does not have is 1.
    """

    part: Part = Field(default="language", description="part whose blocks are counted")
    after_layer: Count = Field(description="blocks passed before tokens are dropped")
    vision_keep_ratio: float = Field(gt=0, le=1)
    text_keep_ratio: float = Field(gt=0, le=1)
    ranking: Ranking = Field(
        default="received",
        description="score that ranks the tokens, in the order of the names: attention received from the "
        "strongest head (Eq. 6), mean attention over heads, attention in the next block, diversity, "
        "informativity, MADTP's three scores, CrossGET's matching",
    )
    merge: Merge = Field(default="none", description="merging of the dropped tokens")

    @model_validator(mode="after")
    def _check_ratios(self) -> "DropPlan":
        """Check that no ratio rounds to 0 thousandths, which would keep nothing."""
        least = min(self.shares)
        if round(least * KEEP_UNIT) < 1:
            raise ValueError(
                f"a keep ratio of {least} after {self.part} block {self.after_layer} is less than a "
                "thousandth"
            )
        return self

    @property
    def keep_ratio(self) -> float:
        """Keep ratio in a part that has one kind of token."""
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
    """Keep ratios of vision and text tokens, by place."""
    return {drop.place: drop.shares for drop in drops}


class ImageSelection(_Frozen):
    """Selection of each image's tokens between a LLaVA's vision tower and its projector (VisionZip).

    The ``dominant`` tokens that [CLS] attends to most stay unchanged. The others are merged into
    ``contextual`` ones, each the mean of similar tokens.
    """

    tower_tokens: Count = Field(description="tokens of an image after the tower")
    dominant: Count = Field(description="tokens that stay unchanged")
    contextual: Index = Field(description="tokens that all others are merged into")

    @model_validator(mode="after")
    def _check_count(self) -> "ImageSelection":
        if self.count > self.tower_tokens:
            raise ValueError(
                f"{self.dominant} dominant and {self.contextual} contextual tokens of an image of "
                f"{self.tower_tokens}"
            )
        return self

    @property
    def count(self) -> int:
        """Number of tokens left of an image."""
        return self.dominant + self.contextual

    def arriving(self, image_tokens: int) -> int:
        """Number of tokens left of ``image_tokens``; a part of an image counts as a whole one."""
        return -(-image_tokens // self.tower_tokens) * self.count

    @property
    def target_places(self) -> list[int]:
        """Places of the merging targets among an image's tokens that are not dominant.

        The first ``contextual`` of every s-th of these r tokens, s = floor(r / contextual).
        """
        if self.contextual == 0:
            return []
        rest = self.tower_tokens - self.dominant
        return list(range(0, rest, rest // self.contextual))[: self.contextual]


class Workload(_Frozen):
    """The prompt that FLOPs are counted on: numbers of image and text tokens.

    Image tokens are those of the dense model's vision tower.
    """

    image_tokens: Index
    text_tokens: Count


class PruningPlan(_Frozen):
    """Plan of what to remove from a model; see ``docs/reference/formats.md``."""

    version: Literal[1] = PLAN_VERSION
    family: str
    task: Task | None = Field(
        default=None, description="task of the model; BLIP has a class for each"
    )
    model: str = Field(description="name or path of the dense checkpoint")
    method: str
    rate: float = Field(description="achieved share of the costs named by rate_of that is removed")
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
    milliseconds: float | None = Field(
        default=None, gt=0, description="predicted time to the first token after"
    )
    position_ids: Literal["kept"] = "kept"
    blocks: tuple[BlockPlan, ...]
    drops: tuple[DropPlan, ...] = ()
    image_selection: ImageSelection | None = Field(
        default=None, description="selection of image tokens after a LLaVA's tower; none: all stay"
    )

    @model_validator(mode="after")
    def _check_rankings(self) -> "PruningPlan":
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
                    "language part of a llava supports it"
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
                    "raised by the number of merged tokens"
                )
        return self

    @model_validator(mode="after")
    def _check_order(self) -> "PruningPlan":
        """Check that the blocks of a part, and its drop places, ascend."""
        for part in PARTS:
            blocks = [block.index for block in self.part(part)]
            places = [drop.after_layer for drop in self.drops if drop.part == part]
            for what, numbers in (("blocks", blocks), ("drops after blocks", places)):
                if not _ascend(numbers):
                    shown = ", ".join(str(number) for number in numbers[:8])
                    more = ", …" if len(numbers) > 8 else ""
                    raise ValueError(
                        f"{what} {shown}{more} of the {part} part must ascend, each named once"
                    )
        return self

    def check_rate(self) -> None:
        """Refuse a rate that contradicts the recorded costs.

        Raises:
            ValueError: names both rates.
        """
        before, after = float(self.macs_dense), float(self.macs)
        what = f"macs {self.macs} of {self.macs_dense}"
        if self.rate_of == "latency":
            if not (self.milliseconds_dense and self.milliseconds):
                raise ValueError("a rate of latency without milliseconds")
            before, after = self.milliseconds_dense, self.milliseconds
            what = f"milliseconds {after} of {before}"
        rate_of_costs = 1 - after / before
        if abs(self.rate - rate_of_costs) > RATE_TOLERANCE:
            raise ValueError(
                f"rate {self.rate} with {what}, which is a rate of {rate_of_costs:.4f}"
            )

    @property
    def flops_rate(self) -> float:
        """Share of the multiply-accumulates removed, also if ``rate`` is one of latency."""
        return self.rate if self.rate_of == "flops" else 1 - self.macs / self.macs_dense

    def part(self, part: Part) -> tuple[BlockPlan, ...]:
        """Return the blocks of a part, in order."""
        return tuple(block for block in self.blocks if block.part == part)

    def save(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read a plan.

        Raises:
            CompExportError: the file is missing, holds something else, has another version, or has a rate
                that contradicts its costs.
        """
        again = "run `comp-export prune` again"
        absent = f"no plan at {path}", "run `comp-export prune` first"
        content = read_versioned(path, "a plan", PLAN_VERSION, absent, again, keys=KEYS)
        plan = validated(cls, content, path, again)
        try:
            plan.check_rate()
        except ValueError as error:
            raise CompExportError(f"{path}: {error}; {again}") from error
        return plan
