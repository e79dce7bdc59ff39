"""A config with other sizes than the weights is refused at the export, not later by the graph."""

import json
from pathlib import Path

import pytest

from comp.errors import CompExportError
from export.exporter import Origin, export_artifact
from tests.comp.small_blip import random_blip
from tests.comp.small_clip import random_clip
from tests.serve.conftest import checkpoint as llava  # noqa: F401


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    random_clip().save(folder / "clip")
    random_blip("question").save(folder / "blip")
    return folder


@pytest.mark.parametrize(
    ("family", "part", "field", "value", "words"),
    [
        ("clip", "vision_config", "patch_size", 13, "patch_size 13"),
        ("clip", "vision_config", "patch_size", 28, "patch_size 28"),
        ("blip", "vision_config", "patch_size", 7, "patch_size 7"),
        ("clip", None, "projection_dim", 7, "projection_dim 7"),
        ("clip", None, "projection_dim", 48, "projection_dim 48"),
    ],
)
def test_config_sizes_other_than_the_weights_are_refused(
    checkpoints, tmp_path, family, part, field, value, words
):
    folder = tmp_path / family
    folder.mkdir()
    for path in (checkpoints / family).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part])[field] = value
    if part is None:  # transformers writes it into both towers too
        for tower in ("text_config", "vision_config"):
            config[tower].pop(field, None)
    Path(folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompExportError, match=rf"config\.json says {words}: take both"):
        export_artifact(folder, tmp_path / "onnx", Origin("changed"))
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("field", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [{"a": 1}, "x", 1.5, True])
def test_special_token_ids_must_be_integers(llava, tmp_path, field, value):  # noqa: F811
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in llava.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {field: value}))
    with pytest.raises(CompExportError, match=f"{field} is .*give the id of a token"):
        export_artifact(folder, tmp_path / "onnx", Origin("changed"))
