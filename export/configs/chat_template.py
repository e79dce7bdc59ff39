"""The chat template of a checkpoint, as its artifact keeps it."""

from pathlib import Path

from comp.checkpoints.chat_template import LLAVA_TEMPLATE, check_template, find_chat_template
from export.artifact.llava_manifest import ChatTemplate
from export.configs.tokenizer import CheckpointTokenizer


def read_chat_template(
    checkpoint: Path, image_token: str, tokenizer: CheckpointTokenizer
) -> ChatTemplate:
    """The template of transformers' processor, or LLaVA-1.5's own where there is none.

    Raises:
        CompExportError: it cannot be rendered, or does not show each image and the words.
    """
    source, tokens = find_chat_template(checkpoint), tokenizer.tokens
    if source is None:
        source, tokens = LLAVA_TEMPLATE, {"image_token": image_token}
    check_template(source, tokens, image_token, str(checkpoint))
    return ChatTemplate(source=source, tokens=tokens)
