"""Locate a model's files: an embedded model, a directory, or a repository on the hub."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from comp.checkpoints.config_checks import checked_config, original_files
from comp.checkpoints.files import check_files
from comp.errors import CompExportError
from comp.utils.json_files import read_object
from comp.utils.similar import suggestion

ALIASES = {
    "llava-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-13b": "llava-hf/llava-1.5-13b-hf",
    "smolvlm-256m": "HuggingFaceTB/SmolVLM-256M-Instruct",
    "smolvlm-500m": "HuggingFaceTB/SmolVLM-500M-Instruct",
    "smolvlm2-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "internvl3-1b": "OpenGVLab/InternVL3-1B-hf",
    "internvl3.5-1b": "OpenGVLab/InternVL3_5-1B-HF",
}
EMBEDDED = (
    "tiny-llava",
    "tiny-smolvlm",
    "tiny-clip",
    "tiny-blip-vqa",
    "tiny-blip-caption",
    "tiny-blip-retrieval",
    "tiny-blip-nlvr",
)
SINGLE = "model.safetensors"  # all weights in one file
INDEX = "model.safetensors.index.json"  # maps weights to several files
WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_model(name: str, revision: str | None = None) -> Path:
    """Return the directory of a checkpoint, downloading it if needed.

    Args:
        name: an embedded model (``tiny-llava``), a directory, an alias (``llava-7b``) or a hub id.
        revision: commit of a hub id; by default that of its main branch.

    Raises:
        CompExportError: there is no such checkpoint, or the hub cannot be reached.
    """
    if name in EMBEDDED:
        return Path(str(files("comp"))) / "models" / name
    directory = Path(name)
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise CompExportError(
                f"{directory} holds no config.json: pass the directory of a Hugging Face checkpoint"
                + original_files(directory)
            )
        return directory
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CompExportError(
            f"no directory {name}: pass --model DIR with a Hugging Face checkpoint"
        )
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    repository = ALIASES.get(name, name)
    if "/" not in repository:
        names = [*EMBEDDED, *ALIASES]
        hint = suggestion(name, names)
        raise CompExportError(
            f"no model {name!r}: {hint + ' ' if hint else ''}pass a directory, a hub id (owner/name), or "
            f"one of {', '.join(names)}"
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        first = Path(hf_hub_download(repository, "config.json", revision=revision))
        read_config(first.parent)  # refuses an unusable model before downloading its weights
        return Path(snapshot_download(repository, revision=revision, allow_patterns=WANTED_FILES))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise CompExportError(
                f"the hub refused {repository}: {str(error).splitlines()[0]}; check the id and, for a "
                "gated model, run `hf auth login`"
            ) from error
        raise CompExportError(
            f"no checkpoint for {name!r} ({repository}): the hub cannot be reached from here and no copy "
            "is cached; download it elsewhere and pass --model DIR"
        ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """Read a checkpoint's ``config.json``, checked and merged (``checked_config``).

    Raises:
        CompExportError: it is missing, damaged, in another format, or quantised; or a file of the checkpoint
            is a Git LFS pointer or leads out of it.
    """
    check_files(directory)
    path = directory / "config.json"
    return checked_config(read_object(path, "fetch the checkpoint again"), str(path))
