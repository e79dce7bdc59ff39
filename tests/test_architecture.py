"""The map of the code, the imports and contents of packages, and the dependency lists agree."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fresh import run_code

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ORDER = ("comp", "export", "serve", "demo")
# Missing on an edge box: running an artifact must not need it.
NOT_ON_THE_EDGE = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "huggingface_hub",
    "safetensors",
    "onnx",
    "onnx_ir",
    "ml_dtypes",
    "gradio",
)


def rooms(package: str) -> set[str]:
    """The packages and modules directly inside a package."""
    inside = (ROOT / package).iterdir()
    return {
        path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}


def arrows(package: str) -> set[tuple[str, str]]:
    """Return the imports between the rooms of a package."""
    names, edges = rooms(package), set()
    for path in sorted((ROOT / package).rglob("*.py")):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in targets:
                parts = target.split(".")
                if parts[0] == package and len(parts) > 1 and parts[1] in names - {room}:
                    edges.add((room, parts[1]))
    return {(room, other) for room, other in edges if room != "__init__"}


def reached(room: str, listed: set[tuple[str, str]]) -> set[str]:
    """Return the rooms that a room imports, also indirectly."""
    seen: set[str] = set()
    waiting = [room]
    while waiting:
        current = waiting.pop()
        following = {other for one, other in listed if one == current} - seen
        seen |= following
        waiting += following
    return seen


def mapped(package: str) -> tuple[list[str], set[tuple[str, str]]]:
    """The rooms in the table of ``docs/explanation/architecture.md``, and the imports in it."""
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {package}\n")[2].partition("\n## ")[0]
    table = re.findall(r"^\| `(\w+)` \| .+ \|(.*) \|$", section, re.MULTILINE)
    imports = {
        (room, other)
        for room, others in table
        for other in re.findall(r"`(\w+)`", others.partition("by name:")[0])
    }
    return [room for room, _ in table], imports


@pytest.mark.parametrize("package", ORDER)
def test_the_map_has_every_room_and_no_other(package: str) -> None:
    table, _ = mapped(package)
    assert sorted(table) == sorted(rooms(package))


@pytest.mark.parametrize("package", ORDER)
def test_the_map_has_the_imports_and_no_others(package: str) -> None:
    listed, imports = mapped(package)[1], arrows(package)
    assert listed <= imports, "listed, but not in the code"
    lost = {(room, other) for room, other in imports if other not in reached(room, listed)}
    assert not lost, "imports that the map does not show"
    needless = {each for each in listed if each[1] in reached(each[0], listed - {each})}
    assert not needless, "imports that others make up for"


def test_comp_is_light_and_registers_in_any_import_order() -> None:
    code = "import sys, comp; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "from transformers import LlavaForConditionalGeneration, AutoConfig\n"
        "import comp\n"
        "assert AutoConfig.for_model('comp_llava').model_type == 'comp_llava'"
    )
    done = run_code(code)
    assert done.status == 0, done.errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "LlamaForCausalLM",  # each of these loads the auto classes at another point of its import
        "BlipForQuestionAnswering",
        "LlavaForConditionalGeneration",
        "AutoProcessor",
    ],
)
def test_slim_models_are_registered_by_any_import(first: str) -> None:
    code = (
        "import comp\n"
        f"from transformers import {first}, AutoConfig, AutoModel\n"
        "for name in ('comp_llava', 'comp_clip', 'comp_blip', 'comp_blip_nlvr'):\n"
        "    assert AutoConfig.for_model(name).model_type == name"
    )
    done = run_code(code)
    assert done.status == 0, done.errors


@pytest.mark.parametrize("first", ["clip.forward", "llava.decoder", "llava.slim"])
def test_any_module_of_a_family_may_be_imported_first(first: str) -> None:
    code = (
        f"import comp.families.{first}\n"
        "from transformers import AutoConfig\n"
        "for name in ('comp_llava', 'comp_clip', 'comp_blip', 'comp_blip_nlvr'):\n"
        "    assert AutoConfig.for_model(name).model_type == name"
    )
    done = run_code(code)
    assert done.status == 0, done.errors


def test_an_edge_box_needs_only_its_requirements() -> None:
    code = (
        "import sys\n"
        f"missing = {NOT_ON_THE_EDGE!r}\n"
        "ray_only = ('fleet.application', 'fleet.entrance', 'fleet.replica', 'study.on_ray')\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in missing:\n"
        "            raise ModuleNotFoundError(f'no {name} on an edge box', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import pkgutil, importlib, serve\n"
        "for module in pkgutil.walk_packages(serve.__path__, 'serve.'):\n"
        "    ray_imports = module.name.removeprefix('serve.') in ray_only\n"
        "    if module.name != 'serve.lmms.model' and not ray_imports:\n"  # lmms-eval imports it, with torch
        "        importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {re.sub(r"[-_.]+", "-", item.name).lower(): item for item in parsed}


def lines_of(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_edge_requirements_are_a_subset_of_the_projects() -> None:
    extras = project()["optional-dependencies"]
    declared = requirements([*project()["dependencies"], *extras["serve"]])
    edge = requirements(lines_of("requirements-edge.txt"))
    assert {name: str(item) for name, item in edge.items()} == {
        name: str(declared[name]) for name in edge
    }
    assert not {name.replace("_", "-") for name in NOT_ON_THE_EDGE} & set(edge)


def test_constraints_pin_every_dependency() -> None:
    pinned: dict[str, list[str]] = {}
    for line in lines_of("constraints.txt"):
        item = Requirement(line)
        (specifier,) = item.specifier
        assert specifier.operator == "=="
        pinned.setdefault(item.name, []).append(specifier.version)
    extras = project()["optional-dependencies"]
    dependencies = [*project()["dependencies"]]
    for extra in ("demo", "serve", "train", "test"):
        dependencies += extras[extra]
    for name, item in requirements(dependencies).items():
        assert name in pinned, f"{name} has no pin"
        assert all(item.specifier.contains(version) for version in pinned[name])
    assert pinned["torch"] == ["2.13.0"]


def test_documented_extras_exist() -> None:
    extras = set(project()["optional-dependencies"])
    assert extras >= {"demo", "serve", "train", "tensorrt", "tensorrt-rtx", "gpu", "openvino"}


def test_the_wheel_holds_packages_and_their_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entries,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "comp-export = comp.cli:main" in archive.read(entries).decode()
    assert names >= {
        "comp/data/emoji/sheet.png",
        "comp/data/emoji/labels.json",
        "comp/data/emoji/ATTRIBUTION.md",
        "comp/models/configs/llava-7b.json",
    }
    files = {
        str(path.relative_to(ROOT))
        for package in ORDER
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_commit_hooks_equal_make_check() -> None:
    recipe = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE) == checks


def test_the_citation_has_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^(?:title|version): (.+)$", citation, re.MULTILINE) == [
        project()["name"],
        project()["version"],
    ]
    assert f"becomes {project()['version']}." in (ROOT / "CHANGELOG.md").read_text()
