"""Files beside a checkpoint's weights that it may have or not."""

from pathlib import Path
from typing import Any

from comp.utils import json_files

TOKENIZER = "tokenizer.json"


def optional_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is not there.

    Raises:
        CompExportError: the file is no JSON, or holds something else.
    """
    return json_files.optional_object(path, "download it again")
