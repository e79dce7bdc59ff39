"""Load the tokenizer of a checkpoint as transformers builds it, which may differ from ``tokenizer.json``.

The class that ``AutoTokenizer`` chooses may rebuild normaliser and pre-tokenizer from
``tokenizer_config.json``, add special tokens, or convert older files. The result is saved, exported and
compared.
"""

from pathlib import Path
from typing import Any

from comp.checkpoints.locate import read_config
from comp.checkpoints.tokenizer_limits import check_ids, check_tokenizer, tokenizer_errors
from comp.errors import CompExportError
from comp.registry.families import family_of

FAST = "save one with a tokenizer.json (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
CONVERTED = "a tokenizer.model is converted where the package sentencepiece is installed"
REMEDY = "take the files as the checkpoint's authors publish them"


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer that ``AutoTokenizer`` makes, without padding and truncation.

    Raises:
        CompExportError: there is none, it cannot be converted, or the engines do not support it.
    """
    from transformers import AutoConfig, AutoTokenizer

    check_ids(directory / "tokenizer.json", REMEDY)
    kind = read_config(directory).get("model_type")
    family = family_of(kind)
    dense = None if family is None or not family.is_slim(kind) else family.dense_type
    # Converters raise any error of the libraries that they try.
    with tokenizer_errors(f"make a tokenizer of the files of {directory}", f"{FAST}; {CONVERTED}"):
        tokenizer = AutoTokenizer.from_pretrained(
            directory,
            config=None if dense is None else AutoConfig.for_model(dense),
            trust_remote_code=False,
            local_files_only=True,
        )
    return checked_tokenizer(tokenizer, directory)


def checked_tokenizer(tokenizer: Any, directory: Path) -> Any:
    """Check that engines support a tokenizer, switch off padding and truncation, and return it.

    Raises:
        CompExportError: it is not a fast tokenizer, can grow texts without bound, or has settings that
            change the tokens of every text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompExportError(
            f"the tokenizer of {directory} is a {type(tokenizer).__name__}, which runs in Python alone: "
            f"{FAST}"
        )
    _refuse_missing_files(tokenizer, directory)
    settings = tokenizer.init_kwargs
    for name, harmless in (
        ("padding", (None, False, True, "longest", "do_not_pad")),
        ("truncation", (None, False, "do_not_truncate")),
    ):
        if settings.get(name) not in harmless:
            raise CompExportError(
                f"tokenizer_config.json of {directory} says {name}: {settings[name]!r}, which changes the "
                "tokens of every text: leave it out"
            )
    without_batches(tokenizer)
    check_tokenizer(backend, f"the tokenizer of {directory}", REMEDY)
    return tokenizer


def _refuse_missing_files(tokenizer: Any, directory: Path) -> None:
    """Refuse missing files: transformers would silently make a tokenizer without a vocabulary."""
    names = dict(type(tokenizer).vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    missing = [name for name in names.values() if not (directory / name).is_file()]
    if not (directory / whole).is_file() and missing:
        raise CompExportError(
            f"{directory} has no tokenizer: it lacks {whole}, and {' and '.join(missing)} to make one of: "
            f"{REMEDY}"
        )


def without_batches(tokenizer: Any) -> None:
    """Reset padding and truncation of the last batch, which would be saved with the tokenizer."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def save_processor(processor: Any, directory: Path) -> None:
    """Write image processor, chat template and tokenizer, so that the tokenizer reloads unchanged."""
    without_batches(processor.tokenizer)
    processor.save_pretrained(directory)


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write the files of a tokenizer alone; its own chat template stays in its settings."""
    without_batches(tokenizer)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
