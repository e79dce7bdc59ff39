"""Run a command that is killed when its parent ends: ``python -m comp.utils.tied PARENT COMMAND...``."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def tied(words: Sequence[str]) -> list[str]:
    """Return the words that run a command as a child which does not outlive the calling thread's process."""
    return [sys.executable, "-m", "comp.utils.tied", str(os.getpid()), *words]


def main(arguments: Sequence[str]) -> None:
    """Ask the kernel for the signal, and become the command."""
    parent, *command = arguments
    if not sys.platform.startswith("linux"):
        sys.exit("Error: a worker on a cluster needs Linux: its processes must end with it")
    if ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL) != 0:
        sys.exit("Error: prctl is not allowed here: allow PR_SET_PDEATHSIG")
    if os.getppid() != int(parent):
        sys.exit("Error: the worker has ended")  # before the kernel was asked
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
