"""`comp-export cut`: a plan applied to a checkpoint gives the model of an untrained `prune`."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoProcessor

from comp.cli import cli
from comp.errors import CompExportError
from comp.runs import open_run
from export.weights.slim import write_slim_checkpoint
from tests.comp.small import small_adapter
from tests.comp.small_blip import random_blip
from tests.comp.small_clip import random_clip
from tests.export.tiny import make_plan

QUICK = ("--stages", "2", "--steps-per-stage", "1", "--batch-size", "4", "--recover", "none")
QUICK += ("--calibration", "4", "--validation", "4", "--dtype", "float32", "--device", "cpu")
UNANSWERED = ("--answer-seconds", "0", "--device", "cpu")  # the first links are tested elsewhere


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


ADAPTERS = {
    "llava": small_adapter,
    "clip": lambda: random_clip(2, width=64),
    "question": lambda: random_blip("question", seed=2, width=64),
    "statement": lambda: random_blip("statement", seed=2, width=64),
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """By kind: a dense checkpoint and an untrained run of it, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            base = tmp_path_factory.mktemp(kind)
            ADAPTERS[kind]().save(base / "dense")
            words = ("--model", base / "dense", "--rate", "0.3", "--no-reconstruction", *QUICK)
            call("prune", *words, "--no-train-stages", "--out", base / "run")
            made[kind] = base / "dense", base / "run"
        return made[kind]

    return of


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_checkpoint_equals_an_untrained_prune(pruned, tmp_path, kind):
    dense, run = pruned(kind)
    done = call(
        "cut", "--model", dense, "--plan", run / "plan.json", "--out", tmp_path / "cut", "--json"
    )
    record = json.loads(done.stdout)
    plan, cut = open_run(run).load_plan(), open_run(tmp_path / "cut")
    assert record == cut.read_record()
    assert (record["rate"], record["recovery"], record["method"]) == (plan.rate, "none", "comp")
    assert cut.load_plan().blocks == plan.blocks
    expected, actual = (
        load_file(path / "checkpoint" / "model.safetensors") for path in (run, tmp_path / "cut")
    )
    # The names that transformers stores may differ from those that are streamed; the tensors do not.
    assert contents(actual) == contents(expected)


def contents(tensors):
    return sorted((array.shape, array.tobytes()) for array in tensors.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "statement"])
def test_the_run_is_exported_verified_and_inspected(pruned, tmp_path, kind):
    dense, run = pruned(kind)
    out = tmp_path / "cut"
    call("cut", "--model", dense, "--plan", run / "plan.json", "--out", out)
    call("onnx", out, "--no-check")
    call("verify", out, "--questions", "4", "--max-new-tokens", "3", *UNANSWERED)
    assert "blocks" in json.loads(call("inspect", out, "--json").stdout)["plan"]


def test_another_model_and_another_run_are_refused(pruned, tmp_path):
    dense, run = pruned("llava")
    clip, _ = pruned("clip")
    plan, out = run / "plan.json", tmp_path / "out"
    words = ("--plan", plan, "--out", out)
    with pytest.raises(CompExportError, match="that is a plan of a llava"):
        call("cut", "--model", clip, *words)
    small_adapter(num_hidden_layers=1).save(tmp_path / "flat")
    with pytest.raises(CompExportError, match="plan"):
        call("cut", "--model", tmp_path / "flat", *words)
    with pytest.raises(CompExportError, match="no plan at"):
        call("cut", "--plan", tmp_path / "none.json", "--out", out)
    assert not out.exists()
    with pytest.raises(CompExportError, match="was not written by `cut`"):
        call("cut", "--model", dense, "--plan", plan, "--out", run, "--force")
    call("cut", "--model", dense, *words)
    with pytest.raises(CompExportError, match="--force replaces"):
        call("cut", "--model", dense, *words)
    call("cut", "--model", dense, *words, "--force")


@pytest.mark.parametrize("nested", [True, False])
def test_the_slim_checkpoint_names_the_processor_classes_of_the_dense_type(gqa, tmp_path, nested):
    model, checkpoint = gqa
    dense = shutil.copytree(checkpoint, tmp_path / "dense")
    settings = json.loads((dense / "processor_config.json").read_text())
    images = {"size": 56, "crop_size": 56, "do_pad": True}  # LlavaImageProcessor's, by the type
    del settings["processor_class"]
    settings.pop("image_processor")
    if nested:
        settings["image_processor"] = images
    else:
        (dense / "preprocessor_config.json").write_text(json.dumps(images))
    (dense / "processor_config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((dense / "tokenizer_config.json").read_text())
    tokenizer.pop("processor_class", None)
    (dense / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    slim = write_slim_checkpoint(dense, make_plan(model.config), tmp_path / "slim")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (90, 40, 3), dtype=np.uint8))
    expected, actual = (
        AutoProcessor.from_pretrained(path).image_processor([picture])["pixel_values"]
        for path in (dense, slim)
    )
    np.testing.assert_array_equal(actual, expected)


def test_an_unknown_image_setting_is_refused_before_the_cut(gqa, tmp_path):
    model, checkpoint = gqa
    dense = shutil.copytree(checkpoint, tmp_path / "dense")
    path = dense / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["do_flip"] = True
    path.write_text(json.dumps(settings))
    with pytest.raises(CompExportError, match="do_flip of CLIPImageProcessor is True"):
        write_slim_checkpoint(dense, make_plan(model.config), tmp_path / "slim")
    assert not (tmp_path / "slim").exists()
