"""The directory for compiled kernels, kept between processes in the user's cache."""

import os
from hashlib import sha256
from pathlib import Path

from comp.errors import CompExportError
from export.artifact.manifest import Manifest


def cache_directory(purpose: str, manifest: Manifest) -> Path:
    """Return ``$XDG_CACHE_HOME/comp-export/<purpose>/<artifact>``; create it if needed.

    Artifacts are identified by the hashes of their files.

    Raises:
        CompExportError: it cannot be created.
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
