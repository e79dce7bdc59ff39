"""``make demo`` installs only what it needs; ``make setup`` installs the rest into the same environment."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Records its arguments; stands for the environment's python and comp-export.
STUB = '#!/bin/sh\necho "$(basename "$0") $*" >> calls\n'


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "comp-export"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    return tmp_path


def make(checkout, target):
    """Return what ``make`` printed and the calls that it made."""
    (checkout / "calls").write_text("")
    done = subprocess.run(
        ["make", target], cwd=checkout, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout, (checkout / "calls").read_text().splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_installs_what_it_needs_and_setup_the_rest(checkout):
    printed, calls = make(checkout, "demo")
    assert calls == [
        "python -m pip install --quiet -e .[demo,serve] -c constraints.txt",
        "comp-export quickstart",
        "comp-export demo",
    ]
    assert make(checkout, "whole")[1][-2:] == [
        "comp-export quickstart --whole",
        "comp-export demo",
    ]
    assert printed.index("1.6 GB") < printed.index("source .venv/bin/activate")
    assert len(make(checkout, "demo")[1]) == 2
    printed, calls = make(checkout, "setup")
    assert calls == ["python -m pip install --quiet -e .[demo,serve,train,test] -c constraints.txt"]
    assert "2.5 GB" in printed
    assert ".venv/bin/comp-export" in printed
    (checkout / ".venv" / ".installed-demo").unlink()
    (checkout / ".venv" / ".installed").unlink()
    make(checkout, "setup")
    assert len(make(checkout, "demo")[1]) == 2, "setup has what the demo needs"
