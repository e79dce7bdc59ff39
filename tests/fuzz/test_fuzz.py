"""A slice of the hostile inputs, and the harness itself: it detects crashes, hangs and wrong answers."""

import os
import time

import pytest

from tests.fuzz.__main__ import jobs_of, run
from tests.fuzz.families import agree
from tests.fuzz.kinds import KINDS
from tests.fuzz.outcomes import Outcome, counted, table
from tests.fuzz.pool import Limits, tried


def odd_trial(base, scratch, kind, seed):
    """Stand in for a trial, with every outcome of a worker."""
    if kind == "ends":
        os.abort()
    if kind == "hangs":
        time.sleep(60)
    if kind == "grows":
        return Outcome(kind, seed, "same", str(len(bytearray(2**31))))
    if kind == "fails":
        raise KeyError("x")
    return Outcome(kind, seed, "refused", "")


def test_crashes_hangs_and_memory_are_outcomes(tmp_path):
    kinds = ("fine", "ends", "fails", "hangs", "grows", "fine", "fine")
    jobs = [(kind, number) for number, kind in enumerate(kinds)]
    limits = Limits(seconds=2.0, starting=20.0, gigabytes=1.0)
    result = list(tried(odd_trial, jobs, tmp_path, tmp_path / "scratch", 2, limits))
    assert sorted((each.kind, each.seed) for each in result) == sorted(jobs)
    by_kind = {each.kind: each for each in result}
    assert by_kind["fine"].verdict == "refused"
    assert by_kind["ends"].detail == "the process ended: SIGABRT"
    assert "KeyError" in by_kind["fails"].detail
    assert by_kind["hangs"].detail == "no end within its time"
    assert "MemoryError" in by_kind["grows"].detail
    assert {by_kind[kind].verdict for kind in ("ends", "fails", "hangs", "grows")} == {"other"}


def test_outcomes_are_counted():
    outcomes = [
        Outcome("a", 1, "same", ""),
        Outcome("a", 2, "other", ""),
        Outcome("b", 3, "same", ""),
    ]
    counts = counted(outcomes)
    assert counts["a"] == {"refused": 0, "same": 1, "other": 1}
    assert "| all | 3 | 0 | 2 | 1 |" in table(counts)
    assert agree(((5, 1, 2),), ((5, 1, 2),))
    assert not agree(((5, 1, 2),), ((5, 1, 3),))
    assert not agree(((5, 1, 2),), ((5, 1),))
    assert agree(((5.0001,),), ((5.0,),))
    assert not agree(((5.1,),), ((5.0,),))


@pytest.mark.slow
def test_hostile_inputs_are_refused_or_answered_as_the_reference(tmp_path):
    """Every input is refused by name, or gets the answer of the reference."""
    outcomes = run(jobs_of(seed=3, share=0.015), tmp_path, 2, Limits())
    wrong = [
        f"{each.kind}, seed {each.seed}: {each.detail}"
        for each in outcomes
        if each.verdict == "other"
    ]
    assert wrong == []
    assert {each.kind for each in outcomes} == set(KINDS)
    assert {each.verdict for each in outcomes} == {"refused", "same"}
