"""The documentation agrees with the code, and its links have targets."""

import re
from pathlib import Path

import click
import pytest

import comp
import demo
import export
import serve
from comp.cli import PROGRAM, VERBS, cli
from comp.commands.cli_reference import pages
from comp.registry.families import FAMILIES
from comp.registry.tasks import TASKS
from tests.pages import FOLLOWED, README, ROOT, commands

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
    tools |= {"--tasks", "--batch", "--gen", "--log", "--output"}  # of lmms-eval: --batch_size, …
    tools |= {"--metrics-export-port", "--rm", "--shm-size"}  # of ray, docker
    tools |= {"--load-model", "--model-control-mode"}  # of Triton
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


def assert_taken(words: list[str]) -> None:
    """Parse a command as click does, without looking for the files that it names."""
    command: click.Command = cli
    context = cli.make_context(PROGRAM, [], resilient_parsing=True)
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(context, name) or pytest.fail(f"no command {name}")
        context = click.Context(command, info_name=name, parent=context)
    values, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, left
    for param in command.get_params(context):
        given = values.get(param.name)
        assert given is not None or not param.required, param.name
        if isinstance(given, str | tuple) and not isinstance(param.type, click.Path | click.File):
            param.type_cast_value(context, given)


@pytest.mark.parametrize("path", FOLLOWED, ids=lambda path: path.name)
def test_commands_to_follow_are_taken(path: Path) -> None:
    to_follow = commands(path.read_text())
    assert len(to_follow) >= 4
    for words in to_follow:
        assert_taken(words)


@pytest.mark.parametrize(
    "line", ["prune --rat", "prune", "onnx --flavour none", "run a b", "data show", "nothing"]
)
def test_a_command_that_is_not_taken_is_noticed(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError, pytest.fail.Exception)):
        assert_taken(line.split())


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_readme_supports_what_the_registry_has() -> None:
    table = README.read_text().partition("## What is supported")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    head, _, *rows = [row for row in rows if row]
    supported = {
        (row[0].lower(), row[1].split()[0].removesuffix("s")): dict(zip(head, row, strict=True))
        for row in rows
    }
    families = {(each.name, task): each for each in FAMILIES for task in each.engines}
    assert supported.keys() == families.keys()
    for (name, task), row in supported.items():
        family = families[name, task]
        assert (row["prune"] == "yes") == bool(family.modes)
        assert (row["ONNX Runtime"] == "yes") == ("onnx" in family.exports)
        assert (row["TensorRT"] == "builds") == ("tensorrt" in family.exports)
        assert (row["page"] == "yes") == bool(TASKS[task].view)
    assert "Run on a GPU: **not yet**" in table


def test_the_first_table_of_the_results_is_that_of_the_readme() -> None:
    rows = re.findall(r"^\| (?:dense|rate) .*%.*$", README.read_text(), re.MULTILINE)
    assert len(rows) == 5
    assert "\n".join(rows) in (ROOT / "docs" / "results" / "index.md").read_text()


@pytest.mark.parametrize("package", [comp, export, serve, demo], ids=lambda each: each.__name__)
def test_the_reference_has_every_public_name(package) -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    section = text.partition(f"## {package.__name__}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^::: [\w.]+\.(\w+)$", section, re.MULTILINE) == package.__all__
