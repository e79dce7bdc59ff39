"""What the algorithm needs to know of a family of models: the adapter contract."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from comp.masks import UNCUT, BlockKey, BlockShape, Masks, StructureCounts
from comp.plan import DropPlan, Part, Place, PruningPlan, Task, Workload
from comp.tokens.drop_rules import DropRules
from comp.tokens.state import TokenState

TokenKind = Literal["vision", "text"]


@dataclass(frozen=True)
class Mode:
    """One of CoMP's pruning modes: the parameters of a part, or the tokens of a kind."""

    name: str
    part: Part | None = None
    tokens: TokenKind | None = None


@dataclass(frozen=True)
class KeptShare:
    """At one drop place: how many tokens of each kind came and stayed, summed over rows."""

    vision: int
    vision_kept: int
    text: int
    text_kept: int


@dataclass(frozen=True)
class DistillationTargets:
    """What a model makes of a batch, as far as another can learn it (``comp.training.distillation``).

    A dense model and a pruned one give as many logits, row by row of the same thing, and tokens of the
    same parts, of which the pruned one has fewer.

    Attributes:
        logits: each ``[J, C]``; of answers and captions over the vocabulary, a row a token of theirs; of
            retrieval over the texts, a row an image, and over the images, a row a text; of statements
            over false and true.
        tokens: those that reached the end of an encoder or of the language model, in normalised states.
    """

    logits: tuple[Tensor, ...]
    tokens: tuple[TokenState, ...]


@dataclass(frozen=True)
class Scored:
    """One batch through the model.

    Attributes:
        loss: what training minimises; of answers the mean cross-entropy of their tokens.
        judge: says what is right, when it is asked for: ranking costs more than the loss.
        shares: what was kept at each drop place.
        targets: gives what distillation compares, when it is asked for.
    """

    loss: Tensor
    judge: Callable[[], Tensor]
    shares: dict[Place, KeptShare]
    targets: Callable[[], DistillationTargets]

    @property
    def correct(self) -> Tensor:
        """For each thing judged, whether it is right, ``[J]`` bool.

        Of an answer, whether greedy decoding would give exactly it (teacher-forced arg-max agrees at
        every answer token, which is the same thing); of a caption, each of its tokens by itself; of
        retrieval, whether the best candidate of an image, or a text, is its own; of a statement, whether
        it was judged rightly.
        """
        return self.judge()


@dataclass(frozen=True)
class Forwarding:
    """How a forward pass prunes: structure masks, drop rules, and whether CIT is on."""

    masks: Masks | None = None
    rules: DropRules | None = None
    calibrated: bool = True


class Observer(Protocol):
    """Sees the inputs of every output projection, with the importance of the tokens there."""

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        """``mixed [B, N, H * hd]``: what the attention's output projection is given."""
        ...

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        """``hidden [B, N, intermediate_size]``: what the FFN's output projection is given."""
        ...


class FamilyAdapter(ABC):
    """A loaded model of one family. A family's adapter has every abstract method, or cannot be made."""

    name: str
    modes: tuple[Mode, ...]
    default_modes: tuple[str, ...]
    model: Any  # an ``nn.Module`` with the attributes of its family
    task: Task
    lora_targets: str  # pattern of the names of the linear layers that LoRA adapts
    blocks: tuple[BlockShape, ...]
    drop_places: dict[Place, tuple[TokenKind, ...]]  # with the kinds of tokens there, in order

    @property
    def tower(self) -> nn.Module | None:
        """The image tower of a language model that reads it, which learns at a rate of its own."""
        return None

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """A batch of the task's examples: ``Example``, or ``PairExample`` of statements."""

    @abstractmethod
    def score(self, batch: Any, forwarding: Forwarding, observer: Observer | None = None) -> Scored:
        """Run a batch with teacher forcing."""

    def shares(self, batch: Any, forwarding: Forwarding) -> dict[Place, KeptShare]:
        """As of ``score``, which may run more of the model than that takes."""
        return self.score(batch, forwarding).shares

    def rows(self, batch: Any) -> int:
        """How many examples a batch of ``collate`` holds."""
        return len(batch.input_ids)

    @abstractmethod
    def with_features(self, batch: Any, masks: Masks | None) -> Any:
        """The batch with its image features in it, for scoring it again with the same weights."""

    @abstractmethod
    def workload(self, batches: Iterable[Any]) -> Workload:
        """The typical prompt of these batches, which FLOPs are counted on."""

    @abstractmethod
    def macs(
        self, counts: StructureCounts, shares: dict[Place, tuple[float, float]], on: Workload
    ) -> int:
        """Multiply-accumulates with so many heads and channels and these keep ratios by place."""

    @abstractmethod
    def macs_of_drops(
        self, drops: tuple[DropPlan, ...], on: Workload, counts: StructureCounts = UNCUT
    ) -> int:
        """Multiply-accumulates with these drops, what ranking and merging takes included.

        Blocks without an entry in ``counts`` are whole.
        """

    @abstractmethod
    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear | None]:
        """Those of the block's attention and FFN; a block of cross-attention has no FFN."""

    def output_magnitude(self, key: BlockKey) -> tuple[Tensor, Tensor]:
        """``(1/d) sum_j |W_ij|`` of the attention's and the FFN's output projection (Eq. 3)."""
        attention, ffn = self.output_projections(key)
        magnitude = _magnitude(attention)
        return magnitude, magnitude.new_zeros(0) if ffn is None else _magnitude(ffn)

    def has_cls(self, key: BlockKey) -> bool:
        """Whether token 0 of a block is [CLS], which token weights leave alone (Eq. 4)."""
        return key[0] == "vision"

    @abstractmethod
    def train_parts(self, parts: set[Part]) -> None:
        """Choose which weights training may change."""

    @abstractmethod
    def cut(self, plan: PruningPlan) -> "FamilyAdapter":
        """A model with the plan's heads and channels physically gone, holding these weights."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write weights, config, tokenizer and image processor."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model's weights are, or those of its first part."""


def _magnitude(output: nn.Linear) -> Tensor:
    return output.weight.detach().float().abs().mean(0)
