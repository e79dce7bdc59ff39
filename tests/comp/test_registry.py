"""Records of families: their names resolve, and a new family is available by name."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from comp.errors import CompExportError
from comp.plan import Task
from comp.registry.code import resolve
from comp.registry.families import FAMILIES, family_called, family_of, register_family
from comp.registry.family import Family
from comp.registry.methods import METHODS, method_called
from comp.registry.tasks import TASKS

LAZY = (
    *("checkpoint", "shape", "tensor_name", "latency", "blocks", "export", "manifest", "artifact"),
    *("verification", "engine_profiles", "load_processor"),
)


@pytest.fixture
def fake() -> Iterator[Family]:
    """A family of this test only; its code is CLIP's."""
    family = replace(
        family_called("clip"),
        name="fake",
        model_types=("fake", "comp_fake"),
        export=f"{__name__}:exported",
    )
    yield register_family(family)
    FAMILIES.remove(family)


def exported(checkpoint: Path, *_: object) -> object:
    """Stand in for the export of a family."""
    raise CompExportError(f"asked to export {checkpoint.name}")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_string_of_a_record_resolves(family: Family) -> None:
    import transformers

    for field in LAZY:
        path = getattr(family, field)
        assert path is None or resolve(path) is not None, field
    assert (family.latency is None) == (family.blocks is None)
    for dense, slim in family.slim.items():
        assert resolve(dense)
        assert resolve(slim)
    for task, engine in family.engines.items():
        assert task in TASKS
        assert callable(resolve(engine).load)
    assert set(family.auto_models) <= set(family.engines)
    assert all(hasattr(transformers, name) for name in family.auto_models.values())


def test_every_task_has_a_measure_and_a_view() -> None:
    assert set(TASKS) == set(get_args(Task))
    assert set(TASKS) == {task for family in FAMILIES for task in family.engines}
    for task in TASKS.values():
        assert callable(resolve(task.measure))
        assert callable(resolve(task.view))


def test_a_registered_family_is_available_by_name(fake: Family, tmp_path: Path) -> None:
    from comp.checkpoints.locate import read_config
    from comp.latency.request import measured_families
    from export.exporter import Origin, export_artifact

    assert family_of("comp_fake") is family_called("fake") is fake
    assert measured_families() == ("llava", "clip", "fake")
    assert method_called("wanda").takes(fake)
    with pytest.raises(CompExportError, match="turbo is not for fake models: it is only for clip"):
        method_called("turbo").modes_among(fake.modes, fake)
    assert "fake" in method_called("comp").families
    (tmp_path / "config.json").write_text(
        '{"model_type": "fake", "text_config": {}, "vision_config": {}}'
    )
    assert read_config(tmp_path)["model_type"] == "fake"
    with pytest.raises(CompExportError, match=f"asked to export {tmp_path.name}"):
        export_artifact(tmp_path, tmp_path / "onnx", Origin("a fake"))


def test_duplicate_names_and_model_types_are_refused(fake: Family) -> None:
    for again in (fake, replace(fake, name="other")):
        with pytest.raises(CompExportError, match="the family fake has 'fake' already"):
            register_family(again)
    assert len(FAMILIES) == 7


def test_unsupported_families_of_a_method_have_a_reason() -> None:
    for method in METHODS:
        assert {*method.families, *method.elsewhere} == {family.name for family in FAMILIES}


def test_the_records_import_lazily() -> None:
    heavy = "('torch', 'transformers', 'onnx', 'export', 'serve')"
    code = "import comp.registry.families, comp.registry.methods, comp.registry.tasks, sys; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
