"""Trying one input."""

import shutil
import traceback
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from comp.errors import CompExportError
from tests.fuzz.base import Base
from tests.fuzz.families import agree, quiet_libraries
from tests.fuzz.kinds import KINDS
from tests.fuzz.outcomes import Outcome


@cache
def _base(folder: Path) -> Base:
    """Load the base once per process, with quiet libraries."""
    quiet_libraries()
    return Base(folder)


def try_one(base: Path, scratch: Path, kind: str, seed: int) -> Outcome:
    """Make the input of a kind and a seed, try it, and judge the outcome."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    trial = KINDS[kind][0](Random(f"{kind} {seed}"), _base(base), scratch)
    try:
        result = trial.product()
    except CompExportError as error:
        words = str(error)
        if not any(name in words for name in trial.names):
            return Outcome(kind, seed, "other", f"{trial.deed}: refused without its name: {words}")
        return Outcome(kind, seed, "refused", f"{trial.deed}: {words}")
    except BaseException:
        trace = traceback.format_exc(limit=-4)
        return Outcome(kind, seed, "other", f"{trial.deed}: {trace}")
    if trial.before is not None and agree(result, trial.before):
        return Outcome(kind, seed, "same", trial.deed)
    return _compared(kind, seed, trial, result)


def _compared(kind: str, seed: int, trial: Any, result: Any) -> Outcome:
    try:
        right = trial.right()
    except BaseException as error:
        shown = f"{type(error).__name__}: {error}"[:300]
        return Outcome(
            kind, seed, "other", f"{trial.deed}: answered {result!r:.120}; the reference: {shown}"
        )
    if agree(result, right):
        return Outcome(kind, seed, "same", trial.deed)
    return Outcome(kind, seed, "other", f"{trial.deed}: {result!r:.120} is not {right!r:.120}")
