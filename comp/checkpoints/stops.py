"""Read the tokens that end an answer, as transformers' ``generate`` does from a checkpoint's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comp.checkpoints.decoder_shape import decoder_fields
from comp.errors import CompExportError
from comp.utils.json_files import read_object

GENERATION = "generation_config.json"
AGAIN = "fetch the checkpoint again"


def stop_tokens(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids that end an answer of a LLaVA.

    From ``generation_config.json`` if it exists, whether it names any or not; else from ``config.json``, with
    the top level before the text model. The tokenizer is not used.

    Args:
        directory: directory of the checkpoint.
        config: its ``config.json``.

    Raises:
        CompExportError: no id is named, or one is not in the vocabulary; names file and field.
    """
    path, text = directory / GENERATION, config.get("text_config") or {}
    if path.is_file():
        ids, where = read_object(path, AGAIN).get("eos_token_id"), f"{path}: eos_token_id"
    else:
        of_whole = config.get("eos_token_id")
        ids = text.get("eos_token_id") if of_whole is None else of_whole
        name = "text_config.eos_token_id" if of_whole is None else "eos_token_id"
        where = f"{directory / 'config.json'}: {name}"
    listed = ids if isinstance(ids, list) else [ids]
    if ids is None or not listed:
        raise CompExportError(
            f"{where} names no EOS token, so that transformers would go on without end: set "
            f"eos_token_id in {path}"
        )
    vocab_size = decoder_fields(text, str(directory))["vocab_size"]
    for each in listed:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise CompExportError(
                f"{where} is {str(ids)[:80]!r}, which is no token of a vocabulary of {vocab_size}: "
                "take all files from the same checkpoint"
            )
    return tuple(dict.fromkeys(listed))
