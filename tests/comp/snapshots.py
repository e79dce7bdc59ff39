"""A command in its own process, and a copy of a folder before each change of its files.

``python -m tests.comp.snapshots FOLDER COPIES WORDS...`` runs ``comp-export WORDS``. Each copy is the state
after a kill at that moment, as far as Python sees the changes: libraries write only into files of
temporary names.
"""

import os
import shutil
import sys
from pathlib import Path

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Watch:
    """Copies ``folder`` into ``copies/NUMBER`` before each change in it."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder.resolve(), copies
        self.busy, self.count = False, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.busy or not self.is_change(event, arguments):
            return
        self.busy = True
        try:
            shutil.copytree(self.folder, self.copies / f"{self.count:04}", symlinks=True)
            self.count += 1
        finally:
            self.busy = False

    def is_change(self, event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & WRITES
        else:
            path, changes = arguments[0] if arguments else None, event in CHANGES
        if not changes or not isinstance(path, str | os.PathLike):
            return False
        if not Path(path).is_absolute():  # rmtree works below an open directory
            return event in CHANGES
        return self.folder in Path(path).parents


if __name__ == "__main__":
    watch = Watch(Path(sys.argv[1]), Path(sys.argv[2]))
    from comp.cli import main

    sys.addaudithook(watch)
    main(sys.argv[3:])
