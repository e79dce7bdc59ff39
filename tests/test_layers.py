"""Imports go one way: demo → serve → export → comp."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("comp", "export", "serve", "demo")
SERVE_MAY_IMPORT = {
    "comp.console", "comp.data", "comp.errors", "comp.files", "comp.images", "comp.options",
    "comp.plan", "comp.runs", "export.cache", "export.engines.limits", "export.engines.manifest",
    "export.engines.names", "export.engines.profiles", "export.engines.runtime",
    "export.engines.slot", "export.manifest",
}  # fmt: skip


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
    for path in sorted((ROOT / "serve").rglob("*.py")):
        for name in imported(path):
            assert name.partition(".")[0] not in {"torch", "transformers", "onnx", "onnx_ir"}, path
            if name.partition(".")[0] in ("comp", "export"):
                allowed = any(name == ok or name.startswith(f"{ok}.") for ok in SERVE_MAY_IMPORT)
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"
