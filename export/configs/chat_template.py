"""Read the chat template of a checkpoint for its artifact."""

from pathlib import Path

from comp.checkpoints.chat_template import LLAVA_TEMPLATE, check_template, find_chat_template
from export.artifact.llava_manifest import ChatTemplate
from export.configs.tokenizer import CheckpointTokenizer


def read_chat_template(
    checkpoint: Path, image_token: str, tokenizer: CheckpointTokenizer
) -> ChatTemplate:
    """Return the template of transformers' processor, or LLaVA-1.5's own if there is none.

    Raises:
        CompExportError: it cannot be rendered, or does not show every image and the words.
    """
    source, tokens = find_chat_template(checkpoint), tokenizer.tokens
    if source is None:
        source, tokens = LLAVA_TEMPLATE, {"image_token": image_token}
    check_template(source, tokens, image_token, str(checkpoint))
    return ChatTemplate(source=source, tokens=tokens)
