"""LLaVA checkpoints: their classes, and checks before a model is loaded."""

import json
from pathlib import Path
from typing import Any

from comp.checkpoints.chat_template import check_template
from comp.checkpoints.generation_settings import check_greedy
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.llava_tensors import check_llava
from comp.checkpoints.stops import stop_tokens
from comp.errors import CompExportError
from comp.families.checkpoint import CheckpointClasses, CheckpointFormat


def _classes(directory: Path, config: dict[str, Any]) -> CheckpointClasses:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from comp.families.llava.adapter import LlavaAdapter
    from comp.families.llava.slim import CompLlavaConfig, CompLlavaForConditionalGeneration

    del directory
    if config["model_type"] == "comp_llava":
        model, settings = CompLlavaForConditionalGeneration, CompLlavaConfig
    else:
        model, settings = LlavaForConditionalGeneration, LlavaConfig
    return CheckpointClasses(model, settings, LlavaProcessor, LlavaAdapter)


def check_weights(directory: Path, config: dict[str, Any]) -> None:
    """Refuse missing tensors, unsupported data types, and a model without stop tokens, before pruning."""
    check_llava(directory, config)
    stop_tokens(directory, config)
    check_greedy(directory)


def _check_prompts(directory: Path, classes: CheckpointClasses, processor: Any) -> None:
    """Refuse a LLaVA whose template, tokenizer or processor does not insert the image.

    Raises:
        CompExportError: names the rendered prompt, the missing token, or the missing fields.
    """
    from comp.families.llava.batches import template_of

    config = classes.config.from_pretrained(directory)
    token_id = config.image_token_id
    tokenizer = processor.tokenizer
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None or tokenizer.convert_tokens_to_ids(tokenizer.tokenize(token)) != [token_id]:
        raise CompExportError(
            f"the tokenizer of {directory} does not read {token!r} as token {token_id}, the image token of "
            "config.json: take both files from the same checkpoint"
        )
    source, tokens = template_of(processor, token)
    check_template(source, tokenizer.special_tokens_map | tokens, token, str(directory))
    _check_image_tokens(directory, config, processor, token)


def _check_image_tokens(directory: Path, config: Any, processor: Any, token: str) -> None:
    """Refuse a processor that writes a different number of image tokens than the tower gives.

    transformers itself fails for images then. The first releases of LLaVA-1.5 have such processors.

    Raises:
        CompExportError: gives the right fields of ``processor_config.json``.
    """
    from PIL import Image

    shape = ModelShape.from_config(config.to_dict(), str(directory))
    wanted = shape.image_tokens
    fields = {
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": int(shape.vision.class_token),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    remedy = f"set in its processor_config.json {json.dumps(fields)}"
    try:
        written = processor(images=[Image.new("RGB", (2, 2))], text=token)["input_ids"]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CompExportError(
            f"the processor of {directory} cannot write the tokens of an image ({error}): {remedy}"
        ) from error
    count = sum(each == config.image_token_id for each in written[0])
    if count != wanted:
        raise CompExportError(
            f"the processor of {directory} writes {count} tokens of an image, and its tower gives {wanted}: "
            f"{remedy}"
        )


FORMAT = CheckpointFormat(_classes, check_weights, _check_prompts)
