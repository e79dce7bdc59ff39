"""Fresh processes that have torch and the base of transformers loaded: that takes 7 s of CPU each time.

They are forked from one that has loaded nothing else: none of transformers' models, and nothing of ours.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

LOADED = "transformers.modeling_utils"
_PROCESSES = get_context("forkserver")
_PROCESSES.set_forkserver_preload([LOADED])


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit status, what it printed, and its peak of resident memory in KiB."""

    status: int
    printed: str
    errors: str
    resident: int


def run_code(code: str, *words: str) -> Ended:
    """Run Python code, with ``words`` in ``sys.argv[1:]``."""
    return _run(code, words)


def run_command(*words: str) -> Ended:
    """Run ``comp-export``."""
    return _run("import sys; from comp.cli import main; main(sys.argv[1:])", words)


def _run(code: str, words: Sequence[str]) -> Ended:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = _PROCESSES.Process(target=_inside, args=(code, tuple(words), folder))
        process.start()
        process.join()
        assert process.exitcode is not None
        printed, errors, resident = (
            (folder / name).read_text(encoding="utf-8")
            for name in ("printed", "errors", "resident")
        )
        return Ended(process.exitcode, printed, errors, int(resident))


def _inside(code: str, words: Sequence[str], folder: Path) -> None:
    models = [name for name in sys.modules if name.startswith("transformers.models.")]
    assert not [name for name in models if ".modeling_" in name], models
    for number, name in ((1, "printed"), (2, "errors")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *words]
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    finally:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (folder / "resident").write_text(str(most))
