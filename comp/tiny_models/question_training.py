"""Train a small vision-language model on questions: losses, optimisers and the loop of the tiny models."""

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from comp.tiny_models.dense_supervision import PatchHeads, dense_loss
from comp.tiny_models.picture_layout import PictureLayout
from comp.tiny_models.scene_batches import IGNORE, Curriculum, SceneBatches
from comp.utils.compute import Compute


@dataclass(frozen=True)
class Recipe(ABC):
    """All settings that the result depends on."""

    dense_steps: int = 1000
    ends: tuple[int, ...] = (3900,)  # the learning rate decays to 0 at each
    batch_size: int = 32
    text_length: int = 160
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    decay_share: float = 0.35
    weight_decay: float = 0.05
    dense_weight: float = 0.5
    seed: int = 0

    @abstractmethod
    def curricula(self) -> list[tuple[int, Curriculum]]:
        """Return what batches hold from a step on."""

    @property
    def total_steps(self) -> int:
        return self.ends[-1]

    def learning_rate_at(self, step: int) -> float:
        """Learning rate: warm-up, constant, then a linear decay to zero at the next end, repeated."""
        end = next(end for end in self.ends if step < end)
        since = step - self.dense_steps if step >= self.dense_steps else step
        warm = min(1.0, (since + 1) / self.warmup_steps)
        return self.learning_rate * warm * min(1.0, (end - step) / (self.decay_share * end))


def packed_questions_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend over ``[shared image prefix | questions]``, cheaper than one masked call over all tokens.

    ``attention_mask [B, 1, L, N]`` holds the rows of the L question tokens; the prefix is causal.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    shared = query.shape[2] - attention_mask.shape[2]
    query = query * (scaling or query.shape[-1] ** -0.5)
    causal = attention_mask.new_ones(shared, shared).tril()
    first = _masked_attention(
        query[:, :, :shared], key[:, :, :shared], value[:, :, :shared], causal
    )
    rest = _masked_attention(query[:, :, shared:], key, value, attention_mask)
    return torch.cat([first, rest], dim=2).transpose(1, 2).contiguous(), None


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Plain attention: in bf16 on a CPU its backward pass is a third faster than the fused one."""
    scores = query @ key.transpose(-1, -2)
    penalty = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -1e9)
    return torch.softmax(scores + penalty, dim=-1, dtype=scores.dtype) @ value


ALL_ATTENTION_FUNCTIONS.register("packed_questions", packed_questions_attention)


class Trainee(torch.nn.Module, ABC):
    """A model with its training-only heads; the forward pass returns losses.

    Args:
        model: a vision-language model; its decoder's attention becomes ``packed_questions``.
        image_token_id: token of an image feature.
    """

    def __init__(self, model: PreTrainedModel, image_token_id: int) -> None:
        super().__init__()
        self.model: Any = model
        self.heads = PatchHeads()
        self.image_token_id = image_token_id
        self.language.set_attn_implementation("packed_questions")

    @property
    @abstractmethod
    def language(self) -> Any:
        """The decoder."""

    @abstractmethod
    def patches(self, pixels: Tensor) -> Tensor:
        """Return the image tokens ``[B, N, d]`` of ``pixels uint8``."""

    def words(self, dense_only: bool) -> Tensor:
        """Return the embeddings that dense supervision reads image tokens with."""
        del dense_only
        return self.language.embed_tokens.weight

    def forward(self, batch: dict[str, Tensor], dense_only: bool) -> dict[str, Tensor]:
        patches = self.patches(batch["pixels"])
        dense, patch_accuracy = dense_loss(self.heads, self.words(dense_only), patches, batch)
        losses = {"dense": dense, "patch_accuracy": patch_accuracy}
        if not dense_only:
            losses.update(self._questions(patches, batch))
        return losses

    def _questions(self, patches: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        language, ids = self.language, batch["prefix"]
        prefix = language.embed_tokens(ids).to(patches.dtype).expand(len(patches), -1, -1)
        places = (ids == self.image_token_id).nonzero()[:, 0]
        prefix = prefix.index_copy(1, places, patches)
        questions = language.embed_tokens(batch["ids"])
        states = torch.cat([prefix, questions.to(patches.dtype)], dim=1)
        shared = prefix.shape[1]
        position = torch.cat(
            [
                torch.arange(shared, device=patches.device).expand(len(patches), -1),
                batch["position"],
            ],
            dim=1,
        )
        hidden = language(
            inputs_embeds=states,
            attention_mask=_packed_mask(batch["segment"], shared),
            position_ids=position,
            use_cache=False,
        ).last_hidden_state
        logits = F.linear(hidden[:, shared:], language.embed_tokens.weight)
        labels = batch["labels"]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)
        answered = labels != IGNORE
        right = ((logits.argmax(-1) == labels) & answered).sum() / answered.sum()
        return {"answer": loss, "token_accuracy": right}


def _packed_mask(segment: Tensor, shared: int) -> Tensor:
    """Causal mask ``[B, 1, L, N]``: a question sees the image and itself, but no other question."""
    everyone = torch.full((len(segment), shared), -2, device=segment.device)
    owner = torch.cat([everyone, segment], dim=1)
    causal = torch.ones(
        owner.shape[1], owner.shape[1], dtype=torch.bool, device=segment.device
    ).tril()
    same = owner[:, :, None] == owner[:, None, :]
    return ((same | (owner == -2)[:, None, :]) & causal)[:, None, shared:]


def optimisers(trainee: Trainee, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    inner: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    other: list[torch.nn.Parameter] = []
    for name, parameter in trainee.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            inner.append(parameter)
        else:
            (decayed if parameter.ndim >= 2 and "embed" not in name else other).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": other, "weight_decay": 0.0}]
    decay = recipe.weight_decay
    return [
        torch.optim.Muon(inner, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=0.0, weight_decay=decay, betas=(0.9, 0.98)),
    ]


def train(
    out: Path,
    trainee: Trainee,
    layout: PictureLayout,
    recipe: Recipe,
    save_every: int,
    threads: int,
) -> None:
    """Run the recipe in ``out``, or continue it.

    Weights of ``trainee`` are those of the end of the recipe afterwards.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(threads)
    compute = Compute()  # bfloat16 where the processor multiplies it fast
    device = compute.device
    trainee = trainee.to(device)
    optims = optimisers(trainee, recipe)
    begin = 0
    state_file = out / "training.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        trainee.load_state_dict(state["trainee"])
        for optimiser, saved in zip(optims, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        begin = state["step"]
    batches = SceneBatches(
        layout,
        recipe.curricula(),
        recipe.batch_size,
        recipe.text_length,
        begin,
        recipe.total_steps,
        recipe.seed,
    )
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8)
    clock = time.time()
    running: dict[str, float] = {}
    for step, batch in enumerate(loader, start=begin):
        batch = {key: value.to(device) for key, value in batch.items()}
        rate = recipe.learning_rate_at(step)
        with compute.autocast():
            losses = trainee(batch, step < recipe.dense_steps)
        total = losses["dense"]
        if "answer" in losses:
            total = recipe.dense_weight * losses["dense"] + losses["answer"]
        total.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimiser in optims:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for key, value in losses.items():
            running[key] = 0.95 * running.get(key, value.item()) + 0.05 * value.item()
        if (step + 1) % 20 == 0:
            seconds = (time.time() - clock) / 20
            clock = time.time()
            line = {"step": step + 1, "seconds": round(seconds, 3), "learning_rate": rate}
            line |= {key: round(value, 4) for key, value in running.items()}
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if (step + 1) % save_every == 0 or step + 1 == recipe.total_steps:
            _save_state(state_file, trainee, optims, step + 1)


def _save_state(
    path: Path, trainee: Trainee, optims: list[torch.optim.Optimizer], step: int
) -> None:
    state = {
        "trainee": trainee.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optims],
        "step": step,
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def run_command(
    description: str | None,
    kind: type[Recipe],
    train_model: Callable[[Path, Any, int, int], None],
) -> None:
    """Train with the recipe of the command line.

    Args:
        description: of the command.
        kind: class of the recipe; each of its fields is an option.
        train_model: gets the directory, the recipe, the steps between two saves, and the number of threads.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    for name, value in asdict(kind()).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, tuple):
            parser.add_argument(flag, type=int, nargs="+", default=value)
        else:
            parser.add_argument(flag, type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out, save_every, threads = (arguments.pop(k) for k in ("out", "save_every", "threads"))
    out.mkdir(parents=True, exist_ok=True)
    recipe = kind(**arguments | {"ends": tuple(arguments["ends"])})
    train_model(out, recipe, save_every, threads)
