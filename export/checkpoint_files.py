"""Files beside a checkpoint's weights that it may have or not."""

import json
from pathlib import Path
from typing import Any

from comp.errors import CompExportError

TOKENIZER = "tokenizer.json"


def optional_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is not there.

    Raises:
        CompExportError: the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompExportError(f"{path} is not JSON ({error}): download it again") from error
    return found if isinstance(found, dict) else {}
