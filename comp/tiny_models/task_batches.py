"""Training batches of the tiny BLIPs and of tiny-clip: images, dense patch targets, texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from comp.data.emoji_scenes.captions import captions_of, draw_scene
from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.scenes import IMAGE_SIZE, Scene, place_things, render
from comp.data.emoji_scenes.splits import SPLITS, split_of
from comp.data.emoji_scenes.sprites import sprites
from comp.data.emoji_scenes.statements import KINDS as STATEMENTS
from comp.data.emoji_scenes.statements import draw_pair
from comp.plan import Task
from comp.tiny_models.pairs import Pair, PairStatement, draw_pair_of_pool, statements_about
from comp.tiny_models.tiny_llava import GRID, PATCH_SIZE
from comp.tiny_models.tiny_tokenizer import NOTHING

Trained = (
    Task | Literal["trunk", "clip"]
)  # task of a model, a tower that others start from, or tiny-clip
IGNORE = -100
TASK_STREAM = 11  # part of the seed: separates these streams from those of datasets
TRAINED: tuple[Trained, ...] = ("trunk", "question", "caption", "retrieval", "statement", "clip")
QUESTIONS_EACH = 6  # for one image
STATEMENTS_EACH = 6  # for one pair
COVERED = 0.25  # share of a patch that a thing must cover to be its word


@dataclass(frozen=True)
class Stage:
    """Content of a batch: the size of the largest scene, and weights of kinds (questions, statements)."""

    most_things: int
    weights: dict[str, float]


class TaskBatches(IterableDataset):
    """Batches ``start`` to ``stop``; batch ``i`` is the same on every run.

    Each is a dict of tensors: ``pixels [I, 168, 168, 3] uint8``, ``patch_word [I, 144]``, and by task
    ``ids [B, L]`` (text, framed), ``answers [B, A]`` (framed); of statements ``label [B]`` and, as
    ``comp.tiny_models.pairs.PairStatement`` has them, ``facts [B, 2]`` and ``cells [B, 2, 2]``.
    """

    def __init__(
        self,
        task: Trained,
        tokenizer: PreTrainedTokenizerFast,
        stages: Sequence[tuple[int, Stage]],
        images: int,
        start: int,
        stop: int,
        seed: int,
    ) -> None:
        self.task, self.tokenizer, self.stages = task, tokenizer, stages
        self.images, self.start, self.stop, self.seed = images, start, stop, seed
        names = [NOTHING, *sprites()]
        self.words = {name: tokenizer.encode(name, add_special_tokens=False)[0] for name in names}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.set_num_threads(1)
        for index in range(self.start, self.stop):
            yield self.batch(index)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return batch ``index``."""
        stage = [stage for begin, stage in self.stages if begin <= index][-1]
        rng = np.random.default_rng([TASK_STREAM, TRAINED.index(self.task), self.seed, index])
        if self.task == "statement":
            return self._pairs(rng, stage)
        if self.task == "question":
            return self._questions(rng, stage)
        scenes = [draw_scene(SPLITS[0], rng) for _ in range(self.images)]
        tensors = self._seen(scenes)
        if self.task != "trunk":
            texts = [_pick(rng, captions_of(scene)) for scene in scenes]
            tensors["ids"] = self._ids(texts)
        return tensors

    def _pairs(self, rng: np.random.Generator, stage: Stage) -> dict[str, Tensor]:
        kinds, share = _shares(stage, STATEMENTS)
        scenes: list[Scene] = []
        statements: list[PairStatement] = []
        for number in range(self.images // 2):
            pair, first = _pair(rng, number, kinds, share)
            scenes += pair
            more = statements_about(pair, kinds, share, STATEMENTS_EACH - len(first), rng)
            statements += [*first, *more]
        tensors = self._seen(scenes) | {"ids": self._ids([each.text for each in statements])}
        return tensors | {
            "label": torch.tensor([int(each.answer) for each in statements]),
            "facts": torch.tensor([each.facts for each in statements]),
            "cells": torch.tensor([each.cells for each in statements]),
        }

    def _questions(self, rng: np.random.Generator, stage: Stage) -> dict[str, Tensor]:
        kinds, share = _shares(stage, KINDS)
        scenes, questions, answers = [], [], []
        for _ in range(self.images):
            first, scene = _scene(rng, stage, kinds, share)
            answer_of: dict[str, str] = {}
            order = [first, *(kinds[i] for i in rng.choice(len(kinds), size=40, p=share))]
            for kind in order:
                question = KINDS[kind].ask(scene, rng)
                if question is not None and len(answer_of) < QUESTIONS_EACH:
                    answer_of.setdefault(question.text, question.answer)
            texts = list(answer_of)
            while len(texts) < QUESTIONS_EACH:  # for a scene with few questions, repeat some
                texts.append(texts[int(rng.integers(len(answer_of)))])
            scenes.append(scene)
            questions += texts
            answers += [answer_of[text] for text in texts]
        tensors = self._seen(scenes)
        return tensors | {"ids": self._ids(questions), "answers": self._ids(answers)}

    def _ids(self, texts: list[str]) -> Tensor:
        rows = self.tokenizer(texts, padding=True)["input_ids"]
        return torch.tensor(rows)

    def _seen(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        painted = [render(scene) for scene in scenes]
        words = [
            self._patch_words(scene, owner)
            for scene, (_, owner) in zip(scenes, painted, strict=True)
        ]
        pixels = np.stack([np.asarray(image) for image, _ in painted])
        return {"pixels": torch.from_numpy(pixels), "patch_word": torch.from_numpy(np.stack(words))}

    def _patch_words(self, scene: Scene, owner: np.ndarray) -> np.ndarray:
        """Return the token of the thing on each patch, ``[144]``."""
        patches = owner.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).transpose(0, 2, 1, 3)
        patches = patches.reshape(GRID * GRID, -1)
        cover = np.stack([(patches == i).sum(1) for i in range(len(scene.things))], axis=1)
        best, amount = cover.argmax(1), cover.max(1)
        names = np.array([self.words[thing.name] for thing in scene.things])
        seen = amount > COVERED * PATCH_SIZE**2
        return np.where(seen, names[best], self.words[NOTHING])


def normalised(pixels: Tensor) -> Tensor:
    """Normalise ``[I, H, W, 3] uint8`` to ``[I, 3, H, W]`` with CLIP's mean and deviation."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=pixels.device)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=pixels.device)
    assert pixels.shape[1] == IMAGE_SIZE
    return ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def _scene(
    rng: np.random.Generator, stage: Stage, kinds: list[str], share: np.ndarray
) -> tuple[str, Scene]:
    """Draw a kind and a training scene that allows it."""
    while True:
        kind = kinds[int(rng.choice(len(kinds), p=share))]
        scene = place_things(KINDS[kind].compose(rng)[: stage.most_things], rng)
        if scene is None or split_of(scene) != SPLITS[0]:
            continue
        if KINDS[kind].ask(scene, rng) is not None:
            return kind, scene


def _pair(
    rng: np.random.Generator, number: int, kinds: list[str], share: np.ndarray
) -> tuple[Pair, list[PairStatement]]:
    """Draw, in turn, a pair for one statement, as in the dataset, and a pair from a pool."""
    if number % 2:
        return draw_pair_of_pool(SPLITS[0], rng), []
    kind = kinds[int(rng.choice(len(kinds), p=share))]
    pair, statement = draw_pair(SPLITS[0], kind, bool(number // 2 % 2), rng)
    return pair, [PairStatement(statement.text, statement.answer, kind, statement.facts)]


def _shares(stage: Stage, all_kinds: dict) -> tuple[list[str], np.ndarray]:
    kinds = [kind for kind in all_kinds if stage.weights.get(kind, 0) > 0]
    weights = np.array([stage.weights[kind] for kind in kinds])
    return kinds, weights / weights.sum()


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
