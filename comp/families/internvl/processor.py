"""The processor of InternVL for pictures alone: transformers' own needs torchvision for videos."""

import re
from pathlib import Path
from typing import Any

import transformers
from transformers import ProcessorMixin

from comp.checkpoints.chat_template import find_chat_template
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.locate import read_config
from comp.errors import CompExportError
from comp.families.image_processor import load_image_processor
from comp.families.tokenizing import load_tokenizer

TOKENS = ("start_image_token", "end_image_token", "context_image_token", "video_token")


class InternVLProcessor(transformers.InternVLProcessor):
    """``InternVLProcessor`` without a video processor; saved files name transformers' class.

    The parts of a processor are those that ``__init__`` names.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_seq_length: int,
        chat_template: str | None = None,
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_image_token = tokenizer.start_image_token
        self.end_image_token = tokenizer.end_image_token
        self.image_token = tokenizer.context_image_token
        self.image_token_id = tokenizer.context_image_token_id
        self.start_image_token_id = tokenizer.start_image_token_id
        self.end_image_token_id = tokenizer.end_image_token_id
        self.video_token = tokenizer.video_token
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})")


class PictureProcessor:
    """Loads an ``InternVLProcessor`` for pictures alone."""

    @staticmethod
    def from_pretrained(directory: Path | str, **_settings: object) -> InternVLProcessor:
        """Load image processor, tokenizer and chat template of a checkpoint's directory.

        Raises:
            CompExportError: a file is missing or unusable.
        """
        path = Path(directory)
        shape = ModelShape.from_config(read_config(path), str(path))
        tokenizer: Any = load_tokenizer(path)
        missing = [name for name in TOKENS if getattr(tokenizer, name, None) is None]
        if missing:
            raise CompExportError(
                f"tokenizer_config.json of {path} has no {', '.join(missing)}: take it from the checkpoint "
                "in the format of transformers, whose name ends in -HF"
            )
        return InternVLProcessor(
            load_image_processor(path),
            tokenizer,
            image_seq_length=shape.all_image_tokens,
            chat_template=find_chat_template(path),
        )
