"""SmolVLM and Idefics3 checkpoints: their classes, and checks before a model is loaded."""

from pathlib import Path
from typing import Any

from comp.checkpoints.chat_template import check_template
from comp.checkpoints.image_prompt import ImagePrompt
from comp.checkpoints.tiling import Grid
from comp.errors import CompExportError
from comp.families.checkpoint import CheckpointClasses, CheckpointFormat
from comp.families.llava.checkpoint import check_weights


def _classes(directory: Path, config: dict[str, Any]) -> CheckpointClasses:
    import transformers

    from comp.families.smolvlm import adapter, slim
    from comp.families.smolvlm.processor import TiledProcessor

    del directory
    kind = str(config["model_type"])
    name = "SmolVLM" if kind.endswith("smolvlm") else "Idefics3"
    adapted = getattr(adapter, f"{name}Adapter")
    if kind.startswith("comp_"):
        model = getattr(slim, f"Comp{name}ForConditionalGeneration")
        return CheckpointClasses(model, getattr(slim, f"Comp{name}Config"), TiledProcessor, adapted)
    model = getattr(transformers, f"{name}ForConditionalGeneration")
    settings = getattr(transformers, f"{name}Config")
    return CheckpointClasses(model, settings, TiledProcessor, adapted)


def _check_prompts(directory: Path, classes: CheckpointClasses, processor: Any) -> None:
    """Refuse a checkpoint whose template or tokenizer does not write the tokens of a picture.

    Raises:
        CompExportError: names the token, or the rendered prompt.
    """
    from comp.families.llava.batches import template_of, tiles_of_processor

    config = classes.config.from_pretrained(directory)
    tokenizer = processor.tokenizer
    image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if tiles_of_processor(processor.image_processor) is None:
        raise CompExportError(
            f"the image processor of {directory} does not cut pictures into tiles, as those of Idefics3 and "
            "SmolVLM do: take its files from the same checkpoint"
        )
    for word in (image_token, *ImagePrompt().words(Grid(1, 1))):
        if word is None or len(tokenizer.tokenize(word)) != 1:
            raise CompExportError(
                f"the tokenizer of {directory} does not read {word!r} as one token, and prompts hold it for "
                "each tile of a picture: take the tokenizer's files from the same checkpoint"
            )
    source, tokens = template_of(processor, image_token)
    check_template(source, tokenizer.special_tokens_map | tokens, image_token, str(directory))


FORMAT = CheckpointFormat(_classes, check_weights, _check_prompts)
