"""Say how to install what an extra brings, so that it works here: nothing of this project is on an index."""

import os
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

DISTRIBUTION = "comp-export"
ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the environment's site-packages


def install_hint(*extras: str) -> str:
    """Return the command that installs extras into the environment that runs this.

    In a checkout it installs the checkout again, with the extras: ``pip install -e '.[serve]'``. A package
    from a wheel does not know where the wheel is; there it names the extras' own packages:
    ``pip install 'onnxruntime>=1.22'``.

    Args:
        extras: names in ``[project.optional-dependencies]``; none: the base installation.
    """
    if (ROOT / "pyproject.toml").is_file():
        place = "." if Path.cwd() == ROOT else str(ROOT)
        wanted = f"[{','.join(extras)}]" if extras else ""
        return f"{_pip()} install -e '{place}{wanted}'"
    packages = [each for extra in extras for each in _packages_of(extra)]
    if not packages:
        return f"install {DISTRIBUTION} again, with its dependencies"
    return f"{_pip()} install {' '.join(shlex.quote(each) for each in packages)}"


def _packages_of(extra: str) -> list[str]:
    """Requirements of an extra, as the installed package declares them."""
    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    wanted = {f"extra=='{extra}'", f'extra=="{extra}"'}
    split = [each.partition(";") for each in declared]
    return [
        package.strip()
        for package, _, marker in split
        if any(each in marker.replace(" ", "") for each in wanted)
    ]


def _pip() -> str:
    """``pip`` if that is this environment's, otherwise this Python's ``-m pip``."""
    found = shutil.which("pip")
    here = Path(sys.executable).parent
    if found is not None and os.path.realpath(Path(found).parent) == os.path.realpath(here):
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"
