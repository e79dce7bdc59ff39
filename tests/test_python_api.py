"""The Python API: the code of its page runs, and importing the packages is light."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import comp
import demo
import export
import serve
from comp.registry.families import FAMILIES
from comp.registry.importances import IMPORTANCES
from comp.registry.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "python-api.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def registries():
    """Forget what the page registers."""
    families, methods, importances = list(FAMILIES), list(METHODS), dict(IMPORTANCES)
    yield
    FAMILIES[:], METHODS[:] = families, methods
    IMPORTANCES.clear()
    IMPORTANCES.update(importances)


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["report"]["ok"]
    assert names["answer"].text
    assert abs(names["plan"].rate - 0.4) < 0.01
    assert names["at_random"].load_plan().method == "random"
    record = names["own"].read_record()
    assert record["request"]["data"] == "90 examples"
    assert comp.open_run(Path("runs/squared")).read_record()["options"]["importance"] == "squared"
    shown = capsys.readouterr().out
    assert "did you mean 'stages'?" in shown
    assert re.search(r"^1 (vision|language)_(tokens|parameters) \d+$", shown, re.MULTILINE)


@pytest.mark.parametrize("package", [comp, export, serve, demo], ids=lambda each: each.__name__)
def test_every_public_name_is_there_and_described(package):
    for name in package.__all__:
        assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018
    assert (Path(package.__file__).parent / "py.typed").is_file()


def test_importing_the_packages_is_light():
    heavy = "('torch', 'transformers', 'onnx', 'onnxruntime', 'gradio', 'pydantic', 'numpy')"
    code = "import comp, export, serve, demo, sys; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
