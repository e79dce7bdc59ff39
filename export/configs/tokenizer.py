"""Read the tokenizer of a checkpoint for an artifact that is used without transformers."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from comp.utils.files import write_text
from export.artifact.manifest import TextProcessing


@dataclass(frozen=True)
class CheckpointTokenizer:
    """The tokenizer of a checkpoint, as an engine needs it.

    Attributes:
        tokenizer: gives the same tokens as transformers.
        processing: settings that ``tokenizer.json`` does not hold.
        tokens: special tokens by their names: ``bos_token``, ``image_token``, …
    """

    tokenizer: Tokenizer
    processing: TextProcessing
    tokens: dict[str, str]

    def id_of(self, name: str) -> int | None:
        """The id of a special token: ``bos``, ``eos`` or ``pad``; ``None`` if there is none."""
        token = self.tokens.get(f"{name}_token")
        token_id: int | None = None if token is None else self.tokenizer.token_to_id(token)
        return token_id

    def write(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        write_text(path, self.tokenizer.to_str())


def read_tokenizer(checkpoint: Path) -> CheckpointTokenizer:
    """Read the tokenizer as transformers loads it from a checkpoint.

    Raises:
        CompExportError: as for ``comp.families.tokenizing.load_tokenizer``.
    """
    from comp.families.tokenizing import load_tokenizer

    loaded = load_tokenizer(checkpoint)
    backend: Tokenizer = loaded.backend_tokenizer
    # As transformers decides when it decodes: clean-up is meant for WordPiece and damages BPE text.
    forced = getattr(
        loaded, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    )
    spoils = type(backend.model).__name__ == "BPE" and not forced
    processing = TextProcessing(
        split_special_tokens=bool(loaded.split_special_tokens),
        clean_up_spaces=bool(loaded.clean_up_tokenization_spaces) and not spoils,
    )
    return CheckpointTokenizer(
        Tokenizer.from_str(backend.to_str()), processing, dict(loaded.special_tokens_map)
    )
