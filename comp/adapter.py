"""The adapter interface: what the pruning algorithm needs from a family of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from comp.checkpoints.slices import Cut
from comp.masks import UNCUT, BlockKey, BlockShape, Masks, StructureCounts
from comp.plan import DropPlan, Part, Place, PruningPlan, Task, Workload
from comp.tokens.drop_rules import DropRules
from comp.tokens.state import TokenState

TokenKind = Literal["vision", "text"]


@dataclass(frozen=True)
class Mode:
    """A pruning mode of CoMP: the parameters of a part, or the tokens of a kind."""

    name: str
    part: Part | None = None
    tokens: TokenKind | None = None


@dataclass(frozen=True)
class KeptShare:
    """Numbers of tokens of each kind before and after a drop place, summed over rows."""

    vision: int
    vision_kept: int
    text: int
    text_kept: int


@dataclass(frozen=True)
class DistillationTargets:
    """Outputs of a model for a batch that another model can learn (``comp.training.distillation``).

    A dense model and a pruned one give logits of the same rows, and tokens of the same parts; the pruned
    one has fewer tokens.

    Attributes:
        logits: each ``[J, C]``. Answers and captions: over the vocabulary, a row for each token. Retrieval:
            over the texts, a row for each image, and over the images, a row for each text. Statements: over
            false and true.
        tokens: final tokens of an encoder or of the language model, with normalised states.
    """

    logits: tuple[Tensor, ...]
    tokens: tuple[TokenState, ...]


@dataclass(frozen=True)
class Scored:
    """Result of a batch.

    Attributes:
        loss: the training loss; for answers, the mean cross-entropy of their tokens.
        judge: computes ``correct`` on demand: ranking costs more than the loss.
        shares: numbers of tokens kept at each drop place.
        targets: computes the distillation targets on demand.
        terms: number of terms that the loss is a mean of: tokens of answers, or examples.
    """

    loss: Tensor
    judge: Callable[[], Tensor]
    shares: dict[Place, KeptShare]
    targets: Callable[[], DistillationTargets]
    terms: int

    @property
    def correct(self) -> Tensor:
        """Whether each judged item is correct, ``[J]`` bool.

        Answer: greedy decoding gives exactly it (equivalent: teacher-forced arg-max agrees at every answer
        token). Caption: each token by itself. Retrieval: the best candidate of an image, or of a text, is
        its own. Statement: the prediction is right.
        """
        return self.judge()


@dataclass(frozen=True)
class Forwarding:
    """Pruning within a forward pass: structure masks, drop rules, and whether CIT is on."""

    masks: Masks | None = None
    rules: DropRules | None = None
    calibrated: bool = True


class Observer(Protocol):
    """Receives the inputs of every output projection, with the importance of the tokens there."""

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        """Receive ``mixed [B, N, H * hd]``, the input of the attention's output projection."""
        ...

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        """Receive ``hidden [B, N, intermediate_size]``, the input of the FFN's output projection."""
        ...


class FamilyAdapter(ABC):
    """A loaded model of one family."""

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
        """The image tower of a language model, which has its own learning rate; ``None`` elsewhere."""
        return None

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """Return a batch of the task's examples: ``Example``, or ``PairExample`` for statements."""

    @abstractmethod
    def score(self, batch: Any, forwarding: Forwarding, observer: Observer | None = None) -> Scored:
        """Run a batch with teacher forcing."""

    def shares(self, batch: Any, forwarding: Forwarding) -> dict[Place, KeptShare]:
        """Return the shares of ``score``; may run less of the model."""
        return self.score(batch, forwarding).shares

    def rows(self, batch: Any) -> int:
        """Return the number of examples in a batch of ``collate``."""
        return len(batch.input_ids)

    @abstractmethod
    def with_features(self, batch: Any, masks: Masks | None) -> Any:
        """Return the batch with its image features, for scoring it again with the same weights."""

    @abstractmethod
    def token_counts(self, batches: Iterable[Any]) -> tuple[int, int, int]:
        """Return the numbers of image tokens, text tokens and prompts in these batches."""

    def workload(self, batches: Iterable[Any]) -> Workload:
        """Return the mean prompt of these batches, for counting FLOPs."""
        return mean_prompt(*self.token_counts(batches))

    @abstractmethod
    def macs(
        self, counts: StructureCounts, shares: dict[Place, tuple[float, float]], on: Workload
    ) -> int:
        """Multiply-accumulates with these heads and channels, and these keep ratios by place."""

    @abstractmethod
    def macs_of_drops(
        self, drops: tuple[DropPlan, ...], on: Workload, counts: StructureCounts = UNCUT
    ) -> int:
        """Multiply-accumulates with these drops, including ranking and merging.

        Blocks without an entry in ``counts`` are whole.
        """

    @abstractmethod
    def output_projections(self, key: BlockKey) -> tuple[nn.Linear, nn.Linear | None]:
        """Output projections of a block's attention and FFN; cross-attention has no FFN."""

    def output_magnitude(self, key: BlockKey) -> tuple[Tensor, Tensor]:
        """Magnitudes ``(1/d) sum_j |W_ij|`` of the attention's and the FFN's output projection (Eq. 3)."""
        attention, ffn = self.output_projections(key)
        magnitude = _magnitude(attention)
        return magnitude, magnitude.new_zeros(0) if ffn is None else _magnitude(ffn)

    def has_cls(self, key: BlockKey) -> bool:
        """Whether token 0 of a block is [CLS], whose token weight is 1 (Eq. 4)."""
        return key[0] == "vision"

    @abstractmethod
    def train_parts(self, parts: set[Part]) -> None:
        """Choose which weights training may change."""

    @abstractmethod
    def cuts(self, plan: PruningPlan) -> Callable[[str], Cut | None]:
        """Return the function from the name of a tensor to its cut by a plan; ``None``: it stays whole."""

    @abstractmethod
    def cut(self, plan: PruningPlan) -> "FamilyAdapter":
        """Return a slim model with the plan's heads and channels removed, with these weights."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write weights, config, tokenizer and image processor."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the model's weights, or of its first part."""


def mean_prompt(image_tokens: int, text_tokens: int, prompts: int) -> Workload:
    """Mean prompt of this number with these tokens; it has at least one text token."""
    return Workload(
        image_tokens=round(image_tokens / prompts), text_tokens=max(1, round(text_tokens / prompts))
    )


def _magnitude(output: nn.Linear) -> Tensor:
    return output.weight.detach().float().abs().mean(0)
