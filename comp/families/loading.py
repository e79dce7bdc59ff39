"""Load a checkpoint as the adapter of its family."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from comp.adapter import FamilyAdapter
from comp.checkpoints.image_processor import read_image_processing, require_image_size
from comp.checkpoints.locate import read_config
from comp.checkpoints.tokenizer_limits import tokenizer_errors
from comp.errors import CompExportError
from comp.families.checkpoint import CheckpointClasses, CheckpointFormat
from comp.families.heads import record_head
from comp.families.image_processor import load_image_processor
from comp.families.tokenizing import CONVERTED, checked_tokenizer
from comp.registry.code import resolve
from comp.registry.families import FAMILIES, family_of

PROCESSOR_FILES = (
    "it needs tokenizer.json, tokenizer_config.json and preprocessor_config.json or processor_config.json; "
    + CONVERTED
)


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
        CompExportError: the family is not supported, or weights or processor files are missing.
    """
    config = read_config(directory)
    family = family_of(config.get("model_type"))
    if family is None:
        raise CompExportError(
            f"{directory} is a {config.get('model_type')!r} model: supported are checkpoints of "
            f"{', '.join(family.name for family in FAMILIES)}"
        )
    if device_map is not None and not family.streams:
        raise CompExportError(
            f"--device-map {device_map} spreads a large LLaVA over GPUs, and {directory} is a {family.name} "
            "model, which fits on one: leave it out"
        )
    if streamed and not family.streams:
        raise CompExportError(
            f"--stream leaves the decoder of a large LLaVA in its files, and {directory} is a {family.name} "
            "model: leave it out"
        )
    from transformers.utils import logging

    logging.disable_progress_bar()  # our own is shown

    form: CheckpointFormat = resolve(family.checkpoint)
    classes = form.classes(directory, config)
    form.check_weights(directory, config)
    images = read_image_processing(directory)
    require_image_size(images, _image_size(directory, classes), directory)
    load = _load_streamed if streamed else partial(_load_model, device_map=device_map)
    processor = _load_processor(directory, classes)  # first: its errors show up quickly
    form.check_processor(directory, classes, processor)
    model = load(directory, classes)
    if device_map is None:
        model.to(device)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return classes.adapter(model, processor, stored)


def _image_size(directory: Path, classes: CheckpointClasses) -> int:
    """Edge of the image tower's square input in pixels."""
    try:
        size = classes.config.from_pretrained(directory).vision_config.image_size
    except (OSError, RuntimeError, ValueError) as error:
        raise CompExportError(f"cannot load {directory}: {str(error).splitlines()[0]}") from error
    edge: int = size if isinstance(size, int) else size[0]  # both edges are the same
    return edge


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence transformers' report of unused tensors inside the block."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _load_streamed(directory: Path, classes: CheckpointClasses) -> Any:
    from comp.families.streamed import stream_decoder, without_layers

    config = classes.config.from_pretrained(directory)
    with torch.device("meta"):
        whole = classes.model(config)
    with _without_load_report():
        shell = _load_model(directory, classes, config=without_layers(config))
    stream_decoder(shell, whole, directory)
    return shell.eval()


def _load_model(
    directory: Path, classes: CheckpointClasses, device_map: str | None = None, config: Any = None
) -> Any:
    """Load the model of the checkpoint, or that of ``config`` with the checkpoint's tensors."""
    from safetensors import SafetensorError

    try:
        model, report = classes.model.from_pretrained(
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

    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise CompExportError(
            f"{directory} lacks {name} and {len(report['missing_keys']) - 1} more tensors of a "
            f"{classes.model.__name__}, which would be random: fetch the whole checkpoint of that class"
        )
    record_head(model)
    return model.eval()


def _load_processor(directory: Path, classes: CheckpointClasses) -> Any:
    # Converters of tokenizers raise any error of the libraries that they try.
    with tokenizer_errors(f"load the processor of {directory}", PROCESSOR_FILES):
        processor = classes.processor.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    checked_tokenizer(processor.tokenizer, directory)
    processor.image_processor = load_image_processor(directory)
    return processor
