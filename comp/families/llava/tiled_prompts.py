"""Check a checkpoint whose pictures are cut into tiles, before its model is loaded."""

from pathlib import Path
from typing import Any

from comp.checkpoints.chat_template import check_template
from comp.checkpoints.image_prompt import PROMPTS
from comp.checkpoints.tiling import Grid
from comp.errors import CompExportError
from comp.families.checkpoint import CheckpointClasses
from comp.registry.families import family_of


def check_tiled_prompts(directory: Path, classes: CheckpointClasses, processor: Any) -> None:
    """Refuse a checkpoint whose template or tokenizer does not write the tokens of a picture.

    Raises:
        CompExportError: names the token, or the rendered prompt.
    """
    from comp.families.llava.batches import template_of, tiles_of_processor

    config = classes.config.from_pretrained(directory)
    family = family_of(config.model_type)
    assert family is not None
    tokenizer = processor.tokenizer
    image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if tiles_of_processor(processor.image_processor) is None:
        raise CompExportError(
            f"the image processor of {directory} does not cut pictures into tiles, as that of a "
            f"{family.name} does: take its files from the same checkpoint"
        )
    for word in (image_token, *PROMPTS[family.name].words(Grid(1, 1))):
        if word is None or len(tokenizer.tokenize(word)) != 1:
            raise CompExportError(
                f"the tokenizer of {directory} does not read {word!r} as one token, and prompts hold it for "
                "each tile of a picture: take the tokenizer's files from the same checkpoint"
            )
    source, tokens = template_of(processor, image_token)
    check_template(source, tokenizer.special_tokens_map | tokens, image_token, str(directory))
