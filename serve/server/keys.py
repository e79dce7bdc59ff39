"""Read API keys from a file that only its owner can read, or from the environment."""

import os
import stat
from pathlib import Path

from comp.errors import CompExportError
from comp.utils.files import read_regular

VARIABLE = "COMP_EXPORT_API_KEYS"
SHORTEST = 16  # characters of a key: shorter ones can be guessed
MOST_BYTES = 1 << 20


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Return the keys of a file, one a line, or of the variable, separated by commas; empty without both.

    Raises:
        CompExportError: the file is missing, empty, or readable by others; a key is short.
    """
    if path is None:
        words = os.environ.get(VARIABLE)
        if words is None:
            return ()
        return _checked(words.split(","), VARIABLE)
    data = read_regular(path, "key file", "write one key a line", MOST_BYTES)
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CompExportError(f"{path} can be read by others: `chmod 600 {path}`")
    try:
        return _checked(data.decode("ascii").splitlines(), str(path))
    except UnicodeDecodeError as error:
        raise CompExportError(f"{path}: keys are letters, digits and signs of ASCII") from error


def _checked(lines: list[str], where: str) -> tuple[str, ...]:
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise CompExportError(f"{where} has no key: write one a line, or leave it out")
    if any(len(key) < SHORTEST for key in keys):
        raise CompExportError(
            f"{where}: a key has fewer than {SHORTEST} characters: take longer ones"
        )
    return keys
