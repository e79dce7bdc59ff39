"""The documentation agrees with the code, and its links have targets."""

import re
from pathlib import Path

import pytest

from comp.cli import VERBS
from comp.commands.cli_reference import pages

ROOT = Path(__file__).parents[3]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_generated_pages_are_current() -> None:
    for name, text in pages().items():
        assert (ROOT / "docs" / "reference" / name).read_text() == text, "run `make docs`"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_targets(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_docs_exist(path: Path) -> None:
    text = path.read_text()
    # In code: a line indented by four spaces, or after a backtick.
    for verb in re.findall(r"(?:^    |`)comp-export ([a-z]+)", text, re.MULTILINE):
        assert verb in VERBS, verb
    for name in re.findall(r"`((?:comp|export|serve|demo|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_the_docs_exist(path: Path) -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", pages()["cli.md"]))
    tools = {"--no-deps", "--version", "--query-gpu", "--format"}  # of pip, nvidia-smi, the program
    programs = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "fuzz" / "__main__.py"]
    scripts = "".join(script.read_text() for script in programs)
    known |= set(re.findall(r'add\(\s*"(--[a-z][a-z-]+)', scripts))
    assert set(re.findall(r"--[a-z][a-z-]+", path.read_text())) <= known | tools


def test_no_registry_hosts_and_no_machine_paths() -> None:
    hosts = re.compile(r"https?://[^ )\"]*(pypi|npmjs|debian|pytorch\.org/whl)", re.IGNORECASE)
    places = re.compile(r"(?<![\w.])/(work|root|home|tmp)/\w")
    names = ["pyproject.toml", "constraints.txt", "requirements-edge.txt", "Makefile", ".ci/run"]
    for path in [*PAGES, *(ROOT / name for name in names)]:
        assert not hosts.search(path.read_text()), path
        assert not places.search(path.read_text()), path
