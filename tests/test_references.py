"""Names and paths in docstrings, comments, records and pages exist. Reads the syntax; imports nothing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("comp", "export", "serve", "demo", "benchmarks", "tests")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
START = rf"(?:{'|'.join(SOURCES)})"
# A dotted name in backticks, maybe called, or run with ``python -m``.
DOTTED = re.compile(rf"`(?:python -m )?({START}(?:\.\w+)+)(?:\([^`]*\)| [A-Z][^`]*)?`")
# A string that names code: "module:attribute", or a module.
CODE = re.compile(rf"{START}(?:\.\w+)+(?::\w+(?:\.\w+)*)?")
PATH = re.compile(rf"`((?:{START}|docs)/[\w./*-]+)`")
Names = dict[str, "Names"]  # those in a module, and in its classes


def named(body: list[ast.stmt]) -> Names:
    """Return the names that a module or a class defines or imports, and those that methods set."""
    names: Names = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = named(node.body)
        elif isinstance(node, ast.FunctionDef):
            inside = (each for each in ast.walk(node) if isinstance(each, ast.Attribute))
            names |= {each.attr: {} for each in inside if isinstance(each.ctx, ast.Store)}
            names[node.name] = {}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: {} for alias in node.names}
        elif isinstance(node, ast.If | ast.Try):
            names |= named([*node.body, *node.orelse])
        else:
            stored = (each for each in ast.walk(node) if isinstance(each, ast.Name))
            names |= {each.id: {} for each in stored if isinstance(each.ctx, ast.Store)}
    return names


@cache
def modules() -> dict[str, tuple[str, ast.Module, Names]]:
    """The text, syntax and names of every module."""
    read = {}
    for path in (path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py"))):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(text := path.read_text(encoding="utf-8"))
        read[name.removesuffix(".__init__")] = text, tree, named(tree.body)
    return read


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        if module in modules():
            names = modules()[module][2]
            for part in parts[cut:]:
                if part not in names:
                    return False
                names = names[part]
            return True
    return ROOT.joinpath(*parts).is_dir()


def lost(text: str) -> list[str]:
    """Return the dotted names and paths in backticks of a text that lead nowhere."""
    names = [name for name in DOTTED.findall(text) if not exists(name)]
    return names + [path for path in PATH.findall(text) if not any(ROOT.glob(path))]


@pytest.mark.parametrize("source", SOURCES)
def test_docstrings_and_comments_name_what_exists(source):
    texts = {name: each[0] for name, each in modules().items() if name.split(".")[0] == source}
    assert {name: lost(text) for name, text in texts.items() if lost(text)} == {}


def test_records_name_code_that_exists():
    strings = {
        node.value
        for name, (_, tree, _) in modules().items()
        if not name.startswith("tests.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    code = {text for text in strings if CODE.fullmatch(text)}
    assert len(code) > 50
    assert [text for text in sorted(code) if not exists(text.replace(":", "."))] == []


def test_pages_name_what_exists():
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    assert {page: lost(page.read_text(encoding="utf-8")) for page in pages} == {
        page: [] for page in pages
    }


def test_a_stale_reference_is_noticed():
    text = (
        "``comp.plan.PruningPlan``, ``comp.plan.{}``, `docs/{}.md`, `comp.{}(1)`, ``comp/plan.py``"
    )
    assert lost(text.format("Gone", "gone", "gone")) == [
        "comp.plan.Gone",
        "comp.gone",
        "docs/gone.md",
    ]
