"""Load the processor of a SmolVLM or an Idefics3 without its video processor, which needs torchvision."""

from pathlib import Path
from typing import Any

from transformers import Idefics3Processor

from comp.checkpoints.chat_template import find_chat_template
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.locate import read_config
from comp.families.image_processor import load_image_processor
from comp.families.tokenizing import load_tokenizer


class TiledProcessor:
    """Loads an ``Idefics3Processor``, which writes the same for a picture as ``SmolVLMProcessor``."""

    @staticmethod
    def from_pretrained(directory: Path | str, **_settings: object) -> Idefics3Processor:
        """Load image processor, tokenizer and chat template of a checkpoint's directory.

        Raises:
            CompExportError: a file is missing or unusable.
        """
        path = Path(directory)
        shape = ModelShape.from_config(read_config(path), str(path))
        tokenizer: Any = load_tokenizer(path)
        template = find_chat_template(path)
        return Idefics3Processor(
            load_image_processor(path),
            tokenizer,
            image_seq_len=shape.all_image_tokens,
            chat_template=template,
        )
