"""Batches of LLaVA prompts with answers, made with the checkpoint's own processor."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlavaConfig, ProcessorMixin

from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.llava_forward import IGNORE, LlavaBatch
from comp.tokens import ANSWER, TEXT, VISION

PLAIN_PROMPT = "USER: <image>\n{prompt} ASSISTANT:"


class LlavaCollator:
    """Turns examples into padded batches: prompt, then answer and end-of-sequence."""

    def __init__(self, processor: ProcessorMixin, config: LlavaConfig) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token_id = config.image_token_id
        self.limit = config.text_config.max_position_embeddings
        size = config.vision_config.image_size // config.vision_config.patch_size
        extra = 0 if config.vision_feature_select_strategy == "default" else 1
        self.image_tokens = size * size + extra

    def prompt(self, question: str) -> str:
        """The question in the checkpoint's chat template (LLaVA-1.5's own where it has none)."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            message = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(message, add_generation_prompt=True)
        return PLAIN_PROMPT.format(prompt=question)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids with each image token repeated for every feature of an image."""
        ids: list[int] = []
        for token in self.tokenizer(self.prompt(question))["input_ids"]:
            ids.extend([token] * (self.image_tokens if token == self.image_token_id else 1))
        return ids

    def pixels(self, examples: Sequence[Example]) -> torch.Tensor:
        images = [example.image for example in examples]
        found = self.processor.image_processor(images)["pixel_values"]
        return torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in found]))

    def __call__(self, examples: Sequence[Example]) -> LlavaBatch:
        """A batch; raises ``CompExportError`` for a prompt longer than the model's positions."""
        rows = []
        for example in examples:
            prompt = self.prompt_ids(example.question)
            answer = self.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
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
