"""The commands in README, tutorials and other pages."""

import re
import shlex
from pathlib import Path

from comp.cli import PROGRAM

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIALS = ROOT / "docs" / "tutorials"
FOLLOWED = [README, *sorted(TUTORIALS.glob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """The words of each command line in code, without the program; a verb alone is just a name."""
    text = text.replace("\\\n", " ")
    lines = re.findall(rf"^ {{4,}}({PROGRAM} .+)$|`({PROGRAM} \w+ [^`]+)`", text, re.MULTILINE)
    parts = [part for line in lines for part in "".join(line).split(" && ")]
    return [shlex.split(part, comments=True)[1:] for part in parts]
