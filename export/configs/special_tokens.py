"""Read the ids of a checkpoint's special tokens for an engine."""

from pathlib import Path
from typing import Any

from comp.checkpoints.generation_settings import check_greedy
from comp.checkpoints.stops import stop_tokens
from comp.errors import CompExportError
from comp.utils.json_files import optional_object
from export.artifact.llava_manifest import SpecialTokens
from export.configs.tokenizer import CheckpointTokenizer


def read_special_tokens(
    directory: Path, config: dict[str, Any], image_token_id: int, read: CheckpointTokenizer
) -> SpecialTokens:
    """Return the ids of special tokens, with EOS as ``generate`` would use it.

    Raises:
        CompExportError: the tokenizer has no image token, no token ends an answer, or the answers of
            transformers depend on settings that engines do not have.
    """
    check_greedy(directory)
    generation = optional_object(directory / "generation_config.json", "download it again")
    text = config.get("text_config") or {}
    image_token = read.tokenizer.id_to_token(image_token_id)
    if image_token is None:
        raise CompExportError(
            f"the tokenizer of {directory} has no token {image_token_id}, the image token of config.json: "
            "take both files from the same checkpoint"
        )

    def token_id(name: str) -> Any:
        key = f"{name}_token_id"
        for value in (generation.get(key), read.id_of(name), text.get(key)):
            if value is not None:
                if not isinstance(value, int) or isinstance(value, bool):
                    raise CompExportError(
                        f"{directory}: {key} is {str(value)[:40]!r}: give the id of a token, a whole number"
                    )
                return value
        return None

    bos = token_id("bos")
    return SpecialTokens(
        image_token=image_token,
        image_token_id=image_token_id,
        bos_token_id=bos,
        eos_token_ids=stop_tokens(directory, config),
        pad_token_id=token_id("pad"),
        add_bos=bos is not None and read.tokenizer.encode("").ids[:1] == [bos],
    )
