"""Imports go one way: demo → serve → export → comp."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("comp", "export", "serve", "demo")
HEAVY = {"torch", "transformers", "onnx", "onnx_ir"}


def imported(path: Path) -> set[str]:
    """Every module a file names in an import, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below_it(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        upward = {name for name in imported(path) if name.partition(".")[0] in above}
        assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}"


def test_serve_needs_neither_torch_nor_transformers():
    modules = []
    for path in sorted((ROOT / "serve").rglob("*.py")):
        heavy = {name for name in imported(path) if name.partition(".")[0] in HEAVY}
        assert not heavy, f"{path.relative_to(ROOT)} imports {sorted(heavy)}"
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules.append(".".join(part for part in parts if part != "__init__"))
    program = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print(*({HEAVY} & sys.modules.keys()))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert loaded.stdout.split() == []
