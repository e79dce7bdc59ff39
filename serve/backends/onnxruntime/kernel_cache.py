"""Where compiled kernels are kept between processes: the user's cache directory."""

import os
from hashlib import sha256
from pathlib import Path

from comp.errors import CompExportError
from export.artifact.manifest import Manifest


def cache_directory(purpose: str, manifest: Manifest) -> Path:
    """``$XDG_CACHE_HOME/comp-export/<purpose>/<artifact>``, made if needed.

    Artifacts are told apart by the hashes of their files.

    Raises:
        CompExportError: it cannot be made.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = sha256("".join(entry.sha256 for entry in manifest.files).encode()).hexdigest()[:16]
    path = home / "comp-export" / purpose / digest
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompExportError(
            f"cannot make the cache {path}: {error.strerror}; set XDG_CACHE_HOME to another place"
        ) from error
    return path
