"""Make batches of LLaVA prompts with answers, with the checkpoint's own processor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin

from comp.checkpoints.chat_template import LLAVA_TEMPLATE, default_template, user_turn
from comp.checkpoints.image_prompt import PROMPTS, with_tiles
from comp.checkpoints.image_settings import Tiles
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.tiling import grid_of
from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.llava.forward import IGNORE, LlavaBatch
from comp.registry.families import family_of
from comp.tokens.state import ANSWER, TEXT, VISION

SHOWN = 200  # characters of a text in an error


def template_of(processor: ProcessorMixin, image_token: str) -> tuple[str, dict[str, str]]:
    """Return the chat template of prompts, and the tokens it may use besides the tokenizer's.

    Raises:
        CompExportError: there are several templates and none is the default.
    """
    for owner in (processor, processor.tokenizer):
        template = default_template(getattr(owner, "chat_template", None), "the processor")
        if template is not None:
            return template, {}
    return LLAVA_TEMPLATE, {"image_token": image_token}


def tiles_of_processor(image_processor: Any) -> Tiles | None:
    """Return how an image processor of transformers cuts pictures; ``None`` if it does not.

    Those of InternVL always cut them, as ``InternVLProcessor`` makes them do.
    """
    if hasattr(image_processor, "crop_to_patches"):
        return Tiles(
            fewest=image_processor.min_patches,
            most=image_processor.max_patches,
            edge=image_processor.size["height"],
        )
    if not hasattr(image_processor, "max_image_size"):
        return None
    return Tiles(
        longest_edge=image_processor.size["longest_edge"],
        edge=image_processor.max_image_size["longest_edge"],
        splits=bool(image_processor.do_image_splitting),
    )


class LlavaCollator:
    """Turns examples into padded batches: prompt, then answer and end of sequence.

    An image, or each of its tiles, has a place for each token of the connector; see ``narrowed``.
    """

    def __init__(self, processor: ProcessorMixin, config: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token_id = config.image_token_id
        self.image_token: str = self.tokenizer.convert_ids_to_tokens(config.image_token_id)
        self.template, self.template_tokens = template_of(processor, self.image_token)
        shape = ModelShape.from_config(config.to_dict())
        self.limit = shape.text.positions
        self.image_tokens = shape.all_image_tokens
        self.tiles = tiles_of_processor(processor.image_processor)
        family = family_of(config.model_type)
        self.image_prompt = None if family is None else PROMPTS.get(family.name)

    def prompt(self, question: str) -> str:
        """Return the question in the checkpoint's chat template (LLaVA-1.5's own if it has none).

        A question may hold the image token itself; then the image goes there.

        Raises:
            CompExportError: the prompt does not hold the image token exactly once.
        """
        turn = user_turn(question, 0 if self.image_token in question else 1)
        text: str = self.processor.apply_chat_template(
            turn, self.template, add_generation_prompt=True, **self.template_tokens
        )
        count = text.count(self.image_token)
        if count != 1:
            raise CompExportError(
                f"the prompt {text[:SHOWN]!r} shows {self.image_token} {count} times, and it is about one "
                f"image: leave {self.image_token} out of the question"
            )
        return text

    def short_ids(self, question: str, image: Image.Image) -> list[int]:
        """Token ids of the prompt, one for an image or for each of its tiles."""
        text = self.prompt(question)
        bos = self.tokenizer.bos_token
        # As transformers' processor does: if the template writes the BOS, add no special tokens.
        framed = bos is not None and text.startswith(bos)
        grids = [grid_of(*image.size, self.tiles)] if self.tiles else []
        text = with_tiles(text, self.image_token, self.image_prompt, grids)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not framed)["input_ids"]
        return ids

    def prompt_ids(self, question: str, image: Image.Image) -> list[int]:
        """Token ids with each image token repeated for every feature of an image or a tile."""
        ids: list[int] = []
        for token in self.short_ids(question, image):
            ids.extend([token] * (self.image_tokens if token == self.image_token_id else 1))
        return ids

    def pixels(self, examples: Sequence[Example]) -> torch.Tensor:
        """Pixels ``[I, 3, S, S]`` of the images, or of all their tiles."""
        process = self.processor.image_processor
        images = [example.image for example in examples]
        if self.tiles is None:
            values = process(images)["pixel_values"]
        elif self.tiles.most is not None:
            values = process(images, crop_to_patches=True)["pixel_values"]
        else:
            values = [tile for image in images for tile in process([image])["pixel_values"][0]]
        return torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in values]))

    def __call__(self, examples: Sequence[Example]) -> LlavaBatch:
        """Return a batch.

        Raises:
            CompExportError: a prompt is longer than the model's positions, or an answer holds the image
                token.
        """
        rows = []
        for example in examples:
            prompt = self.prompt_ids(example.question, example.image)
            answer = self.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
            if self.image_token_id in answer:
                raise CompExportError(
                    f"the answer {example.answer[:SHOWN]!r} holds {self.image_token}, which stands for an "
                    "image: leave it out"
                )
            rows.append((prompt, [*answer, self.tokenizer.eos_token_id]))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        if width > self.limit:
            raise CompExportError(
                f"a prompt of {width} tokens is longer than the model's {self.limit} positions: "
                "shorten the question or the answer"
            )
        shape = (len(rows), width)
        ids = torch.full(shape, self.tokenizer.pad_token_id or 0)
        kind = torch.full(shape, ANSWER)
        alive = torch.zeros(shape)
        labels = torch.full(shape, IGNORE)
        for row, (prompt, answer) in enumerate(rows):
            start, end = len(prompt), len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            kind[row, :start] = torch.where(ids[row, :start] == self.image_token_id, VISION, TEXT)
            alive[row, :end] = 1
            labels[row, start - 1 : end - 1] = ids[row, start:end]
        query = torch.tensor([len(prompt) - 1 for prompt, _ in rows])
        return LlavaBatch(self.pixels(examples), ids, kind, alive, query, labels)


@dataclass(frozen=True)
class Narrowed:
    """A batch with fewer places for each image, and the original index of each token ``[B, N]``."""

    batch: LlavaBatch
    origin: torch.Tensor

    def origin_of(self, places: torch.Tensor, image_token_id: int) -> torch.Tensor:
        """``origin`` if the image tokens are those at ``places [I, K]`` of the tower's tokens."""
        is_image = self.batch.input_ids == image_token_id
        shift = places - torch.arange(places.shape[1], device=places.device)
        moved = self.origin.clone()
        moved[is_image] += shift.flatten().to(moved.device)
        return moved


def narrowed(batch: LlavaBatch, image_token_id: int, places: int, left: int) -> Narrowed:
    """Return the batch with the first ``left`` of the ``places`` of each image."""
    ids = batch.input_ids
    is_image = ids == image_token_id
    within = (is_image.cumsum(1) - 1) % places
    surplus = is_image & (within >= left)
    width = int((~surplus).sum(1).max())
    taken = surplus.to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    fills = surplus.gather(1, taken)  # padding of rows that lose more places than others

    def of(values: torch.Tensor, filling: torch.Tensor | float) -> torch.Tensor:
        return torch.where(fills, filling, values.gather(1, taken))

    query = batch.query - surplus.cumsum(1).gather(1, batch.query[:, None])[:, 0]
    kept = replace(
        batch,
        input_ids=of(ids, ids.gather(1, batch.query[:, None])),
        kind=of(batch.kind, ANSWER),
        alive=of(batch.alive, 0.0),
        labels=of(batch.labels, IGNORE),
        query=query,
    )
    return Narrowed(kept, taken)
