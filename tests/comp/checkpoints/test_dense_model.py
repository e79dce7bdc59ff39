"""The recorded dense model of a run, and how a run identifies it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from comp.checkpoints.dense_model import (
    DenseModelGoneError,
    OtherWeightsError,
    dense_model_of,
    described,
)
from comp.checkpoints.weights_digest import BLOCK, BLOCKS, weights_digest
from comp.errors import CompExportError
from comp.runs import RUN_VERSION, RunDirectory

LARGE = BLOCK * BLOCKS // 4 + 4096  # float32 values: more bytes than are read


def checkpoint(path, seed=0, change=None):
    rng = np.random.default_rng(seed)
    tensors = {
        "a.weight": rng.normal(size=(7, 5)).astype(np.float32),
        "b.weight": rng.normal(size=LARGE).astype(np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    if change is not None:
        change(tensors)
    path.mkdir(parents=True)
    (path / "config.json").write_text(
        '{"model_type": "clip", "text_config": {}, "vision_config": {}}'
    )
    save_file(tensors, path / "model.safetensors")
    return path


def in_shards(source, path):
    path.mkdir()
    tensors = load_file(source / "model.safetensors")
    shards = {name: f"model-{number}.safetensors" for number, name in enumerate(sorted(tensors))}
    for name, shard in shards.items():
        save_file({name: tensors[name]}, path / shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    shutil.copy(source / "config.json", path)
    return path


def record(run, **fields):
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps({"version": RUN_VERSION, **fields}))
    return RunDirectory(run)


def test_the_same_weights_have_one_digest_in_any_layout_of_files(tmp_path):
    whole = checkpoint(tmp_path / "whole")
    digest = weights_digest(whole)
    assert digest is not None
    assert digest.startswith("sampled-sha256:")
    assert weights_digest(in_shards(whole, tmp_path / "shards")) == digest
    assert weights_digest(shutil.copytree(whole, tmp_path / "copy")) == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["a.weight"].__setitem__((6, 4), 9.0),
        lambda tensors: tensors["b.weight"].__setitem__(0, 9.0),
        lambda tensors: tensors["b.weight"].__setitem__(-1, 9.0),
        lambda tensors: tensors["b.weight"].__imul__(1.001),
        lambda tensors: tensors.update(c=tensors.pop("a.weight")),
        lambda tensors: tensors.update({"a.weight": tensors["a.weight"].reshape(5, 7)}),
        lambda tensors: tensors.update({"a.weight": tensors["a.weight"].view(np.int32)}),
        lambda tensors: tensors.pop("empty"),
    ],
    ids=["small", "first", "last", "trained", "name", "shape", "type", "missing"],
)
def test_other_weights_have_another_digest(tmp_path, change):
    changed = checkpoint(tmp_path / "changed", change=change)
    assert weights_digest(changed) != weights_digest(checkpoint(tmp_path / "dense"))


def test_broken_weights_are_named(tmp_path):
    dense = checkpoint(tmp_path / "dense")
    shards = in_shards(dense, tmp_path / "shards")
    (shards / "model-1.safetensors").unlink()
    with pytest.raises(CompExportError, match=r"model-1\.safetensors"):
        weights_digest(shards)
    whole = (dense / "model.safetensors").read_bytes()
    for broken in (whole[:-4], b"version https://git-lfs", b"", b"\xff" * 64):
        (dense / "model.safetensors").write_bytes(broken)
        with pytest.raises(CompExportError, match=r"dense/model\.safetensors is truncated or no"):
            weights_digest(dense)
    (dense / "model.safetensors").unlink()
    assert weights_digest(dense) is None


def test_a_relative_path_is_resolved_from_any_directory(tmp_path, monkeypatch):
    dense = checkpoint(tmp_path / "home" / "my-llava")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    fields = described("my-llava", dense.relative_to(tmp_path / "home"))
    assert fields["model"] == "my-llava"
    assert fields["model_path"] == str(dense)
    run = record(tmp_path / "run", **fields)
    monkeypatch.chdir(tmp_path / "away")
    assert dense_model_of(run) == dense
    checkpoint(tmp_path / "away" / "my-llava", seed=1)
    assert dense_model_of(run) == dense
    with pytest.raises(
        OtherWeightsError, match=r"my-llava has other weights than the my-llava that"
    ):
        dense_model_of(run, "my-llava")


def test_a_moved_model_is_named_with_the_remedy(tmp_path):
    dense = checkpoint(tmp_path / "dense")
    run = record(tmp_path / "run", **described(str(dense), dense))
    moved = dense.rename(tmp_path / "moved")
    with pytest.raises(DenseModelGoneError, match=rf"is no longer at {dense}: leave it out"):
        dense_model_of(run, remedy="leave it out with --no-dense")
    assert dense_model_of(run, str(moved)) == moved
    checkpoint(dense, seed=1)
    with pytest.raises(OtherWeightsError, match="another model of that name: say where it is now"):
        dense_model_of(run)


def test_an_embedded_model_is_recorded_by_name(tmp_path):
    run = record(tmp_path / "run", model="tiny-clip", model_path=None)
    embedded = dense_model_of(run)
    assert embedded.name == "tiny-clip"
    fields = described("tiny-clip", embedded)
    assert fields["model_path"] is None
    assert fields["model_revision"] is None
    assert dense_model_of(record(tmp_path / "run", **fields)) == embedded
    with pytest.raises(OtherWeightsError):
        dense_model_of(record(tmp_path / "run", **fields | {"model": "tiny-llava"}))


def test_the_revision_of_a_hub_model_is_recorded_and_requested(tmp_path, monkeypatch):
    snapshot = checkpoint(tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    fields = described("a/b", snapshot)
    assert (fields["model_path"], fields["model_revision"]) == (None, "c0ffee")
    requests = []

    def download(repository, revision, allow_patterns):
        requests.append((repository, revision, "*.safetensors" in allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = str(snapshot / "config.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, revision: config)
    assert dense_model_of(record(tmp_path / "run", **fields)) == snapshot
    assert requests == [("a/b", "c0ffee", True)]
