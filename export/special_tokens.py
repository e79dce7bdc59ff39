"""The ids that an engine must know of a checkpoint's special tokens."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from comp.errors import CompExportError
from export.checkpoint_files import TOKENIZER, optional_object
from export.llava_manifest import SpecialTokens


def read_special_tokens(
    directory: Path, config: dict[str, Any], image_token_id: int
) -> SpecialTokens:
    """Ids of special tokens; EOS as ``generate`` would use it.

    Raises:
        CompExportError: no ``tokenizer.json``, or no image token in it.
    """
    path = directory / TOKENIZER
    if not path.is_file():
        raise CompExportError(
            f"{path} is missing: save the checkpoint's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise CompExportError(f"{path} is no tokenizer ({error}): download it again") from error
    settings = optional_object(directory / "tokenizer_config.json")
    generation = optional_object(directory / "generation_config.json")
    text = config.get("text_config") or {}
    image_token = tokenizer.id_to_token(image_token_id)
    if image_token is None:
        raise CompExportError(
            f"{path} has no token {image_token_id}, the image token of config.json: "
            "take both files from the same checkpoint"
        )

    def token_id(name: str) -> Any:
        token = settings.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        by_name = None if content is None else tokenizer.token_to_id(content)
        for value in (generation.get(f"{name}_token_id"), by_name, text.get(f"{name}_token_id")):
            if value is not None:
                return value
        return None

    eos = token_id("eos")
    if eos is None:
        raise CompExportError(
            f"{directory} names no EOS token: set eos_token_id in generation_config.json"
        )
    bos = token_id("bos")
    return SpecialTokens(
        image_token=image_token,
        image_token_id=image_token_id,
        bos_token_id=bos,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        pad_token_id=token_id("pad"),
        add_bos=bos is not None and tokenizer.encode("").ids[:1] == [bos],
    )
