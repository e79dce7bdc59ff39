"""Train tiny-clip and the tiny BLIPs: ``python -m comp.tiny_models.train_tiny_models TASK --out DIR``.

``trunk`` comes first: the tower of tiny-llava is adapted to BLIP, and every patch is trained to predict the
word for the thing that covers it, by the text models' own word embeddings. ``vqa``, ``caption`` and
``retrieval`` start from it with ``--start``; ``nlvr`` starts from ``vqa``; ``clip`` uses tiny-llava's tower
unchanged. A run can be interrupted and continued with the same command.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BlipForQuestionAnswering,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from comp.checkpoints.locate import resolve_model
from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.statements import KINDS as STATEMENTS
from comp.tiny_models.task_batches import TRAINED, Stage, TaskBatches, Trained, normalised
from comp.tiny_models.task_losses import Tokens, Trainee
from comp.tiny_models.tiny_blip import (
    blip_processor,
    clip_processor,
    initialise_text,
    statements_from_questions,
    text_models,
    tiny_blip,
    tiny_clip,
    tower_from_llava,
)
from comp.tiny_models.tiny_tokenizer import NOTHING
from comp.utils.compute import Compute

SOURCE = "tiny-llava"
FOLDING_IMAGES = 64  # to measure the deviation of embeddings in the tower
EVERYTHING = dict.fromkeys(KINDS, 1.0)
BINDING = {"where": 2.0, "at": 2.0, "exists": 1.0, "extreme": 1.0, "relation": 1.0, "list": 0.5}
COUNTING = {"size": 1.5, "count": 4.0, "count_category": 3.0, "odd": 1.5, "list": 2.0}
FIRST_PAIRS = {"presence": 2.0, "place": 1.0, "category": 1.0}
ALL_PAIRS = dict.fromkeys(STATEMENTS, 1.0)


@dataclass(frozen=True)
class Recipe:
    """All settings that the result depends on."""

    images: int
    steps: int
    stages: tuple[tuple[int, Stage], ...]
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    decay_share: float = 0.4  # of the steps, at the end
    weight_decay: float = 0.05
    dense_weight: float = 0.3
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Learning rate: warm-up, constant, linear decay to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return (
            self.learning_rate
            * warm
            * min(1.0, (self.steps - step) / (self.decay_share * self.steps))
        )


ANY = ((0, Stage(5, {})),)
RECIPES: dict[Trained, Recipe] = {
    "trunk": Recipe(32, 500, ANY, dense_weight=1.0),
    "question": Recipe(
        32,
        4500,
        (
            (0, Stage(3, BINDING)),
            (300, Stage(5, EVERYTHING | BINDING)),
            (700, Stage(7, EVERYTHING | {"size": 2.0, "count": 2.0, "list": 1.5})),
            (1500, Stage(7, EVERYTHING | COUNTING)),
            (3000, Stage(7, EVERYTHING | COUNTING | {"relation": 5.0})),
        ),
    ),
    "caption": Recipe(32, 1500, ANY),
    "retrieval": Recipe(64, 900, ANY),
    "statement": Recipe(
        48,
        1300,
        ((0, Stage(5, FIRST_PAIRS)), (300, Stage(5, ALL_PAIRS | {"place": 2.0, "relation": 3.0}))),
        learning_rate=1e-3,
    ),
    "clip": Recipe(64, 600, ANY),
}


def build(task: Trained, start: Path | None) -> tuple[Any, Any]:
    """Return the initial model of a task, and its processor."""
    processor = clip_processor() if task == "clip" else blip_processor()
    source = LlavaForConditionalGeneration.from_pretrained(
        resolve_model(SOURCE), dtype=torch.float32, use_safetensors=True
    )
    if task == "clip":
        model: Any = tiny_clip(processor.tokenizer)
        _fill(model.vision_model, source.model.vision_tower.state_dict())
        return model, processor
    model = tiny_blip("retrieval" if task == "trunk" else task, processor.tokenizer)
    initialise_text(model)
    if task == "trunk":
        batches = TaskBatches("trunk", processor.tokenizer, ANY, FOLDING_IMAGES, 0, 1, seed=1)
        tower_from_llava(model, source, normalised(batches.batch(0)["pixels"]))
        return model, processor
    if start is None:
        raise SystemExit(f"{task} starts from another model: train it first and pass --start DIR")
    if task == "statement":
        answerer = BlipForQuestionAnswering.from_pretrained(
            start / "model", dtype=torch.float32, use_safetensors=True
        )
        statements_from_questions(model, answerer)
        return model, processor
    from safetensors.torch import load_file

    state = load_file(start / "model" / "model.safetensors")
    tower = {k.removeprefix("vision_model."): v for k, v in state.items() if "vision_model." in k}
    model.vision_model.load_state_dict({k: v.float() for k, v in tower.items()})
    words = state["text_encoder.embeddings.word_embeddings.weight"].float()
    for part in text_models(model):
        part.embeddings.word_embeddings.weight.data.copy_(words)
    return model, processor


def optimisers(trainee: Trainee, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    inner: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in trainee.named_parameters():
        if parameter.ndim == 2 and (".layers." in name or ".layer." in name):
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
    task: Trained, out: Path, start: Path | None, recipe: Recipe, save_every: int, threads: int
) -> None:
    """Run the recipe in ``out``, or continue it."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(threads)
    compute = Compute()  # bfloat16 where the processor multiplies it fast
    device = compute.device
    model, processor = build(task, start)
    tokenizer: PreTrainedTokenizerFast = processor.tokenizer
    nothing = tokenizer.encode(NOTHING, add_special_tokens=False)[0]
    trainee = Trainee(task, model, Tokens(tokenizer, nothing)).to(device)
    optims = optimisers(trainee, recipe)
    begin = _resume(out / "training.pt", trainee, optims, device)
    batches = TaskBatches(
        task, tokenizer, recipe.stages, recipe.images, begin, recipe.steps, recipe.seed
    )
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8)
    clock = time.time()
    running: dict[str, float] = {}
    for step, batch in enumerate(loader, start=begin):
        batch = {key: value.to(device) for key, value in batch.items()}
        with compute.autocast():
            losses = trainee(batch)
        total = recipe.dense_weight * losses["dense"]
        for name in ("loss", "match"):
            total = total + losses.get(name, 0.0)
        total.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimiser in optims:
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for key, value in losses.items():
            running[key] = 0.95 * running.get(key, value.item()) + 0.05 * value.item()
        if (step + 1) % 20 == 0:
            line = {"step": step + 1, "seconds": round((time.time() - clock) / 20, 3)}
            line |= {key: round(value, 4) for key, value in running.items()}
            clock = time.time()
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            _save(out / "training.pt", trainee, optims, step + 1)
    if task == "clip":
        model.logit_scale.data.copy_(trainee.temperature.data.clamp(max=4.6))
    model.to(torch.float16).save_pretrained(out / "model")
    processor.save_pretrained(out / "model")


def _fill(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"another tower: {[*missing, *unexpected][:3]}")


def _resume(
    path: Path, trainee: Trainee, optims: list[torch.optim.Optimizer], device: torch.device
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    trainee.load_state_dict(state["trainee"])
    for optimiser, saved in zip(optims, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return int(state["step"])


def _save(path: Path, trainee: Trainee, optims: list[torch.optim.Optimizer], step: int) -> None:
    state = {
        "trainee": trainee.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optims],
        "step": step,
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TRAINED)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.task]
    if arguments.steps is not None:
        recipe = replace(recipe, steps=arguments.steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(
        arguments.task,
        arguments.out,
        arguments.start,
        recipe,
        arguments.save_every,
        arguments.threads,
    )


if __name__ == "__main__":
    main()
