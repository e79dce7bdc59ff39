"""Training batches of EmojiScenes: many questions packed after one image, and dense patch targets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from comp.data.emoji_scenes.questions import KINDS
from comp.data.emoji_scenes.scenes import MAX_THINGS, SQUARE, Scene, place_things, render
from comp.data.emoji_scenes.splits import SPLITS, split_of
from comp.tiny_models.picture_layout import PictureLayout, Size

IGNORE = -100
SQUARES = 0.5  # share of batches of square pictures, beside the draws among all sizes
MOST_IN_HALF = 4  # things in a picture of half the area
BATCH_STREAM = 7  # part of the seed: separates the training stream from the streams of datasets


@dataclass(frozen=True)
class Curriculum:
    """Content of a batch: the size of the largest scene, and the weight of each question kind."""

    max_things: int
    weights: dict[str, float]


class SceneBatches(IterableDataset):
    """Batches ``start`` to ``stop`` of packed scenes; batch ``i`` is the same on every run.

    Each batch is a dict of tensors: ``pixels [B, ..., 3] uint8``, ``prefix [P]`` (tokens before a question),
    for each of its N image tokens ``patch_word [B, N]`` (token id of the thing on it), ``patch_geometry
    [B, N, 3]`` (centre x, y and size of that thing, in image widths) and ``patch_centre [B, N]`` (1 at the
    centre of a thing), and for the questions ``ids, labels, segment, position [B, L]``. Pictures of a batch
    have one size.
    """

    def __init__(
        self,
        layout: PictureLayout,
        curricula: list[tuple[int, Curriculum]],
        batch_size: int,
        text_length: int,
        start: int,
        stop: int,
        seed: int,
    ) -> None:
        self.layout, self.tokenizer = layout, layout.tokenizer
        self.curricula = curricula
        self.batch_size = batch_size
        self.text_length = text_length
        self.start, self.stop, self.seed = start, stop, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        for index in range(self.start, self.stop):
            yield self.batch(index)

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        """Return batch ``index``."""
        curriculum = [stage for begin, stage in self.curricula if begin <= index][-1]
        rng = np.random.default_rng([BATCH_STREAM, self.seed, index])
        size = self._size(rng)
        prefix = self.layout.prefix(size)
        rows = [self._row(rng, curriculum, size, len(prefix)) for _ in range(self.batch_size)]
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        return batch | {"prefix": torch.tensor(prefix)}

    def _size(self, rng: np.random.Generator) -> Size:
        """Draw the size of the pictures of a batch; half of the batches have squares."""
        sizes = self.layout.sizes
        if len(sizes) == 1 or rng.random() < SQUARES:
            return SQUARE
        return sizes[int(rng.integers(len(sizes)))]

    def _row(
        self, rng: np.random.Generator, curriculum: Curriculum, size: Size, start: int
    ) -> dict[str, np.ndarray]:
        kinds, weights = zip(*curriculum.weights.items(), strict=True)
        share = np.array(weights) / sum(weights)
        kind, scene = _training_scene(rng, curriculum, kinds, share, size)
        image, owner = render(scene)
        row = self.layout.targets(scene, owner)
        row["pixels"] = self.layout.pixels(image)
        row.update(self._questions(scene, kind, rng, kinds, share, start))
        return row

    def _questions(
        self,
        scene: Scene,
        first_kind: str,
        rng: np.random.Generator,
        kinds: tuple[str, ...],
        share: np.ndarray,
        start: int,
    ) -> dict[str, np.ndarray]:
        ids = np.full(self.text_length, self.tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full(self.text_length, IGNORE, dtype=np.int64)
        segment = np.full(self.text_length, -1, dtype=np.int64)
        position = np.zeros(self.text_length, dtype=np.int64)
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
    rng: np.random.Generator,
    curriculum: Curriculum,
    kinds: tuple[str, ...],
    share: np.ndarray,
    size: Size,
) -> tuple[str, Scene]:
    most = min(curriculum.max_things, MOST_IN_HALF if min(size) * 2 <= max(size) else MAX_THINGS)
    while True:
        kind = kinds[int(rng.choice(len(kinds), p=share))]
        names = KINDS[kind].compose(rng)[:most]
        scene = place_things(names, rng, size)
        if scene is not None and split_of(scene) == SPLITS[0]:
            return kind, scene
