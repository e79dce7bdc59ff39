"""Load a checkpoint as the adapter of its family."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from comp.adapter import FamilyAdapter
from comp.checkpoints.chat_template import check_template
from comp.checkpoints.generation_settings import check_greedy
from comp.checkpoints.image_processor import read_image_processing, require_image_size
from comp.checkpoints.llava_tensors import check_llava, no_float
from comp.checkpoints.locate import read_config
from comp.checkpoints.stops import stop_tokens
from comp.checkpoints.tokenizer_limits import tokenizer_errors
from comp.checkpoints.weight_files import FLOATS, stored_tensors
from comp.errors import CompExportError
from comp.families.heads import record_head
from comp.families.image_processor import load_image_processor
from comp.families.tokenizing import CONVERTED, checked_tokenizer

PARAMETERS = (".weight", ".bias")
FAMILIES = {
    "llava": "llava",
    "comp_llava": "llava",
    "clip": "clip",
    "comp_clip": "clip",
    "blip": "blip",
    "comp_blip": "blip",
    "comp_blip_nlvr": "blip",
}
PROCESSOR_FILES = (
    "it needs tokenizer.json, tokenizer_config.json and preprocessor_config.json or processor_config.json; "
    + CONVERTED
)


@dataclass(frozen=True)
class _Classes:
    """What a checkpoint is made of."""

    model: Any
    config: Any
    processor: Any
    adapter: Any


def load_adapter(
    directory: Path,
    device: torch.device | str = "cpu",
    device_map: str | None = None,
    streamed: bool = False,
) -> FamilyAdapter:
    """Load weights in fp32 with their processor.

    Args:
        directory: a checkpoint's directory (safetensors only).
        device: where to put the model.
        device_map: ``auto`` spreads a large model over all GPUs (through accelerate).
        streamed: leave the matrices of a LLaVA's decoder in their files (``comp.families.streamed``).

    Raises:
        CompExportError: for an unsupported family, missing weights or missing processor files.
    """
    config = read_config(directory)
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise CompExportError(
            f"{directory} is a {config.get('model_type')!r} model: supported are LLaVA-1.5, CLIP and "
            "BLIP checkpoints (model_type 'llava', 'clip', 'blip')"
        )
    if device_map is not None and family != "llava":
        raise CompExportError(
            f"--device-map {device_map} spreads a large LLaVA over GPUs, and {directory} is a {family} "
            "model, which fits on one: leave it out"
        )
    if streamed and family != "llava":
        raise CompExportError(
            f"--stream leaves the decoder of a large LLaVA in its files, and {directory} is a {family} "
            "model: leave it out"
        )
    from transformers.utils import logging

    logging.disable_progress_bar()  # our own says what is going on

    classes = _CLASSES[family](directory, config)
    _check_weights(directory, config)
    images = read_image_processing(directory)
    require_image_size(images, _image_size(directory, classes), directory)
    load = _load_streamed if streamed else partial(_load_model, device_map=device_map)
    processor = _load_processor(directory, classes)  # first: what is wrong with it is quickly known
    if family == "llava":
        _check_prompts(directory, classes, processor)
    model = load(directory, classes)
    if device_map is None:
        model.to(device)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return classes.adapter(model, processor, stored)


def _image_size(directory: Path, classes: _Classes) -> int:
    """Edge of the squares that the image tower takes, in pixels."""
    try:
        size: int = classes.config.from_pretrained(directory).vision_config.image_size
    except (OSError, RuntimeError, ValueError) as error:
        raise CompExportError(f"cannot load {directory}: {str(error).splitlines()[0]}") from error
    return size


def _check_weights(directory: Path, config: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers, or read as numbers that they are not.

    Also a LLaVA whose answers have no end, which is found out before it is pruned and not after.
    """
    if FAMILIES[config["model_type"]] == "llava":
        check_llava(directory, config)
        stop_tokens(directory, config)
        check_greedy(directory)
        return
    for name, tensor in stored_tensors(directory).items():
        if tensor.code not in FLOATS and name.endswith(PARAMETERS):
            raise no_float(tensor, name)


def _llava(directory: Path, config: dict[str, Any]) -> _Classes:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from comp.families.llava.adapter import LlavaAdapter
    from comp.families.llava.slim import CompLlavaConfig, CompLlavaForConditionalGeneration

    text, vision = (config.get(f"{part}_config", {}) for part in ("text", "vision"))
    for part, kind, wanted in (
        ("language", text.get("model_type", "llama"), "llama"),
        ("vision", vision.get("model_type", "clip_vision_model"), "clip_vision_model"),
    ):
        if kind != wanted:
            raise CompExportError(
                f"{directory} has a {kind!r} {part} model: LLaVA-1.5 has {wanted!r}, others are not supported"
            )
    if config["model_type"] == "comp_llava":
        model, settings = CompLlavaForConditionalGeneration, CompLlavaConfig
    else:
        model, settings = LlavaForConditionalGeneration, LlavaConfig
    return _Classes(model, settings, LlavaProcessor, LlavaAdapter)


def _clip(_directory: Path, config: dict[str, Any]) -> _Classes:
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    from comp.families.clip.adapter import ClipAdapter
    from comp.families.clip.slim import CompCLIPConfig, CompCLIPModel

    model, settings = CLIPModel, CLIPConfig
    if config["model_type"] == "comp_clip":
        model, settings = CompCLIPModel, CompCLIPConfig
    return _Classes(model, settings, CLIPProcessor, ClipAdapter)


def _blip(directory: Path, config: dict[str, Any]) -> _Classes:
    import transformers
    from transformers import BlipConfig, BlipProcessor

    from comp.families.blip.nlvr import BlipNlvrConfig
    from comp.families.blip.retrieval import BlipRetrieval
    from comp.families.blip.slim import CompBlipConfig
    from comp.families.blip.tasks import BlipCaptions, BlipQuestions, BlipStatements

    tasks = (BlipCaptions, BlipQuestions, BlipRetrieval, BlipStatements)
    kind, named = config["model_type"], (config.get("architectures") or [""])[0]
    known = {adapter.architecture: adapter for adapter in tasks}
    if kind == "comp_blip":
        known = {adapter.slim_type.__name__: adapter for adapter in tasks}
    adapter = known.get(named)
    if adapter is None or (adapter is BlipStatements) != (kind == "comp_blip_nlvr"):
        raise CompExportError(
            f"{directory} is a {kind!r} model of architecture {named!r}: supported are "
            f"{', '.join(known)}"
        )
    if kind == "blip":
        model, settings = getattr(transformers, named), BlipConfig
    else:
        model = adapter.slim_type
        settings = BlipNlvrConfig if adapter is BlipStatements else CompBlipConfig
    return _Classes(model, settings, BlipProcessor, adapter)


_CLASSES = {"llava": _llava, "clip": _clip, "blip": _blip}


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Inside the block transformers does not say which tensors of a checkpoint it left there."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load_streamed(directory: Path, classes: _Classes) -> Any:
    from comp.families.streamed import stream_decoder, without_layers

    config = classes.config.from_pretrained(directory)
    with torch.device("meta"):
        whole = classes.model(config)
    with _without_load_report():
        shell = _load_model(directory, classes, config=without_layers(config))
    stream_decoder(shell, whole, directory)
    return shell.eval()


def _load_model(
    directory: Path, classes: _Classes, device_map: str | None = None, config: Any = None
) -> Any:
    """The model of the checkpoint, or of ``config`` with what the checkpoint has of it."""
    from safetensors import SafetensorError

    try:
        model, found = classes.model.from_pretrained(
            directory,
            config=config or classes.config.from_pretrained(directory),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            device_map=device_map,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CompExportError(f"cannot load {directory}: {str(error).splitlines()[0]}") from error

    if found["missing_keys"]:
        name = sorted(found["missing_keys"])[0]
        raise CompExportError(
            f"{directory} lacks {name} and {len(found['missing_keys']) - 1} more tensors of a "
            f"{classes.model.__name__}, which would be random: fetch the whole checkpoint of that class"
        )
    record_head(model)
    return model.eval()


def _load_processor(directory: Path, classes: _Classes) -> Any:
    # Converters of tokenizers raise whatever the libraries that they try raise.
    with tokenizer_errors(f"load the processor of {directory}", PROCESSOR_FILES):
        processor = classes.processor.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    checked_tokenizer(processor.tokenizer, directory)
    processor.image_processor = load_image_processor(directory)
    return processor


def _check_prompts(directory: Path, classes: _Classes, processor: Any) -> None:
    """Refuse a LLaVA whose template, tokenizer or processor does not show the image.

    Raises:
        CompExportError: says what is rendered instead, which token is missing, or what the processor lacks.
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
    """Refuse a processor that writes another number of image tokens than the tower gives, or none.

    transformers itself answers nothing about images then; the first releases of LLaVA-1.5 are such.

    Raises:
        CompExportError: says which fields of ``processor_config.json`` are right.
    """
    from PIL import Image

    from comp.families.llava.batches import tower_tokens
    from comp.families.llava.forward import config_selection

    wanted, strategy = tower_tokens(config), config.vision_feature_select_strategy
    selection = config_selection(config)  # of a slim checkpoint, which leaves fewer
    wanted = wanted if selection is None else selection.count
    fields = {
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": strategy,
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
