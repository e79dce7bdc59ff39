"""Training batches of EmojiScenes: many questions packed after one image, and dense patch targets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.scenes import IMAGE_SIZE, Scene, place_things, render
from comp.data.emoji_scenes.splits import SPLITS, split_of
from comp.tiny_models.tiny_llava import GRID, PATCH_SIZE
from comp.tiny_models.tiny_tokenizer import NOTHING

IGNORE = -100
PREFIX_TEXT = "USER:"
BATCH_STREAM = 7  # part of the seed: separates the training stream from the streams of datasets


@dataclass(frozen=True)
class Curriculum:
    """Content of a batch: the size of the largest scene, and the weight of each question kind."""

    max_things: int
    weights: dict[str, float]


class SceneBatches(IterableDataset):
    """Batches ``start`` to ``stop`` of packed scenes; batch ``i`` is the same on every run.

    Each batch is a dict of tensors: ``pixels [B, 168, 168, 3] uint8``, ``patch_word [B, 144]`` (token
    id of the thing on a patch), ``patch_geometry [B, 144, 3]`` (centre x, y and size of that thing, in
    image widths), ``patch_centre [B, 144]`` (1 at the centre of a thing), and for the questions
    ``ids, labels, segment, position [B, L]``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        curricula: list[tuple[int, Curriculum]],
        batch_size: int,
        text_length: int,
        start: int,
        stop: int,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.curricula = curricula
        self.batch_size = batch_size
        self.text_length = text_length
        self.start, self.stop, self.seed = start, stop, seed
        self.word_ids = {
            name: tokenizer.encode(name, add_special_tokens=False)[0] for name in _patch_words()
        }
        self.prefix_length = 1 + len(tokenizer.encode(PREFIX_TEXT, add_special_tokens=False))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        for index in range(self.start, self.stop):
            yield self.batch(index)

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        """Return batch ``index``."""
        curriculum = [stage for begin, stage in self.curricula if begin <= index][-1]
        rng = np.random.default_rng([BATCH_STREAM, self.seed, index])
        rows = [self._row(rng, curriculum) for _ in range(self.batch_size)]
        return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}

    def _row(self, rng: np.random.Generator, curriculum: Curriculum) -> dict[str, np.ndarray]:
        kinds, weights = zip(*curriculum.weights.items(), strict=True)
        share = np.array(weights) / sum(weights)
        kind, scene = _training_scene(rng, curriculum, kinds, share)
        image, owner = render(scene)
        row = self._patch_targets(scene, owner)
        row["pixels"] = np.asarray(image)
        row.update(self._questions(scene, kind, rng, kinds, share))
        return row

    def _patch_targets(self, scene: Scene, owner: np.ndarray) -> dict[str, np.ndarray]:
        patches = owner.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).transpose(0, 2, 1, 3)
        patches = patches.reshape(GRID * GRID, -1)
        cover = np.stack([(patches == i).sum(1) for i in range(len(scene.things))], axis=1)
        best, amount = cover.argmax(1), cover.max(1)
        seen = amount > 0.25 * PATCH_SIZE**2
        word = np.full(GRID * GRID, self.word_ids[NOTHING], dtype=np.int64)
        geometry = np.full((GRID * GRID, 3), np.nan, dtype=np.float32)
        centre = np.zeros(GRID * GRID, dtype=np.float32)
        for i, thing in enumerate(scene.things):
            mine = seen & (best == i)
            word[mine] = self.word_ids[thing.name]
            geometry[mine] = np.array([thing.x, thing.y, thing.size]) / IMAGE_SIZE
            centre[int(thing.y // PATCH_SIZE) * GRID + int(thing.x // PATCH_SIZE)] = 1
        return {"patch_word": word, "patch_geometry": geometry, "patch_centre": centre}

    def _questions(
        self,
        scene: Scene,
        first_kind: str,
        rng: np.random.Generator,
        kinds: tuple[str, ...],
        share: np.ndarray,
    ) -> dict[str, np.ndarray]:
        ids = np.full(self.text_length, self.tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full(self.text_length, IGNORE, dtype=np.int64)
        segment = np.full(self.text_length, -1, dtype=np.int64)
        position = np.zeros(self.text_length, dtype=np.int64)
        start = self.prefix_length + GRID * GRID
        used, texts, number = 0, set(), 0
        order = [first_kind, *(kinds[i] for i in rng.choice(len(kinds), size=40, p=share))]
        for number, kind in enumerate(order):
            question = KINDS[kind].ask(scene, rng)
            if question is None or question.text in texts:
                continue
            if number > 0 and kind == "count" and question.answer == "one" and rng.random() < 0.7:
                continue
            texts.add(question.text)
            text = self.tokenizer.encode(f"{question.text} ASSISTANT:", add_special_tokens=False)
            answer = self.tokenizer.encode(question.answer, add_special_tokens=False)
            tokens = [*text, *answer, self.tokenizer.eos_token_id]
            if used + len(tokens) > self.text_length:
                break
            span = slice(used, used + len(tokens))
            ids[span], segment[span] = tokens, number
            position[span] = start + np.arange(len(tokens))
            # Each label is at the place that predicts it: one place before the token.
            labels[used + len(text) - 1 : used + len(tokens) - 1] = tokens[len(text) :]
            used += len(tokens)
        return {"ids": ids, "labels": labels, "segment": segment, "position": position}


def _training_scene(
    rng: np.random.Generator, curriculum: Curriculum, kinds: tuple[str, ...], share: np.ndarray
) -> tuple[str, Scene]:
    while True:
        kind = kinds[int(rng.choice(len(kinds), p=share))]
        names = KINDS[kind].compose(rng)[: curriculum.max_things]
        scene = place_things(names, rng)
        if scene is not None and split_of(scene) == SPLITS[0]:
            return kind, scene


def _patch_words() -> list[str]:
    from comp.data.emoji_scenes.sprites import sprites

    return [NOTHING, *sprites()]
