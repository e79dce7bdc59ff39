"""Files of an artifact or of engines, damaged one by one."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from comp.errors import CompExportError

DAMAGES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda file: file.unlink(), "is missing"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
    (lambda file: file.write_bytes(b"?" + file.read_bytes()[1:]), "corrupted"),
)


def assert_damage_is_refused(
    directory: Path, names: Sequence[str], load: Callable[[Path], object], remedy: str, work: Path
) -> None:
    """Remove, truncate and change each file: ``load`` names it, the fault and the remedy."""
    load(directory)  # correct without damage
    for name in names:
        for damage, words in DAMAGES:
            copy = work / "copy"
            shutil.copytree(directory, copy)
            damage(copy / name)
            with pytest.raises(CompExportError, match=words) as caught:
                load(copy)
            assert name in str(caught.value)
            assert remedy in str(caught.value)
            shutil.rmtree(copy)
