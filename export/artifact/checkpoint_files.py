"""Optional files in a checkpoint's folder."""

from pathlib import Path
from typing import Any

from comp.utils import json_files

TOKENIZER = "tokenizer.json"


def optional_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file does not exist.

    Raises:
        CompExportError: the file is not JSON, or not an object.
    """
    return json_files.optional_object(path, "download it again")
