"""Modern families through the verbs, as a user runs them, on small random checkpoints of transformers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from comp.checkpoints.tiling import Grid
from comp.cli import cli
from comp.errors import CompExportError
from comp.families.internvl.processor import PictureProcessor
from comp.families.smolvlm.processor import TiledProcessor
from comp.plan import PruningPlan
from demo.cards.kept_tokens import KeptView, Patches
from export.artifact.load import read_manifest
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from tests.export.tiny import save_checkpoint, tiny_config, tiny_model
from tests.export.tiny_tiled import save_tiled, tiny_tiled

QUICK = ("--stages", "3", "--recover", "none", "--calibration", "4", "--validation", "4")
MODES = ("--modes", "vt,lt,lp,vp")


def called(*arguments):
    words = [str(each) for each in arguments] + ["--json"]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def pictures():
    rng = np.random.default_rng(3)
    sizes = ((60, 140), (30, 30))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    """A run of a small SmolVLM, exported."""
    base = tmp_path_factory.mktemp("smolvlm")
    save_tiled(tiny_tiled("smolvlm", seed=1), base / "dense")
    run = base / "run"
    called("prune", "--model", base / "dense", "--rate", "0.4", "--out", run, *QUICK, *MODES)
    called("onnx", run, "--no-check")
    return base / "dense", run


@pytest.mark.slow
def test_every_link_of_a_smolvlm_holds(smolvlm):
    report = called("verify", smolvlm[1], "--questions", "3", "--max-new-tokens", "4")
    assert report["ok"]
    assert [link["name"] for link in report["first_links"]] == [
        "transformers = serve (onnx)",
        "transformers = serve (onnx-dense)",
        "transformers = batches of prune",
        "transformers, slim checkpoint = serve (onnx)",
    ]
    assert all(link["ok"] for link in report["first_links"])


def test_the_manifest_says_how_pictures_become_tiles(smolvlm):
    manifest = read_manifest(smolvlm[1] / "onnx")
    assert manifest.family == "smolvlm"
    tiles = manifest.image_processor.tiles
    assert (tiles.longest_edge, tiles.edge, tiles.splits) == (84, 28, True)
    assert (manifest.vision.image_tokens, manifest.vision.shuffle) == (4, 2)
    assert manifest.image_prompt.kind == "idefics3"


def test_answers_about_several_pictures_equal_transformers(smolvlm):
    dense, run = smolvlm
    engine = Engine.load(run / "onnx-dense", threads=1)
    options = GenerationOptions(max_new_tokens=6)
    mine = engine.generate(pictures(), "what is this", options)
    processor = TiledProcessor.from_pretrained(dense)
    content = [*({"type": "image"} for _ in range(2)), {"type": "text", "text": "what is this"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(
        images=[pictures()], text=[text], return_tensors="pt", add_special_tokens=False
    )
    model = AutoModelForImageTextToText.from_pretrained(dense)
    with torch.no_grad():
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    prompt = inputs["input_ids"].shape[1]
    assert mine.prompt_tokens == prompt
    assert list(mine.token_ids) == [int(each) for each in generated[0, prompt:] if each != 2]
    # 2 x 3 tiles of the first picture and 3 x 3 of the second, and each as a whole
    assert mine.image_tokens == (7 + 10) * 4
    assert (
        engine.generate_batch([(pictures(), "what is this")], options)[0].token_ids
        == mine.token_ids
    )


def test_kept_tokens_are_those_of_each_picture(smolvlm):
    engine = Engine.load(smolvlm[1] / "onnx", threads=1)
    answer = engine.generate(pictures(), "is this a cat", GenerationOptions(max_new_tokens=2))
    assert [places.size for places in answer.kept.image_places] == [28, 40]
    for number, most in ((0, 28), (1, 40)):
        for _, kept in answer.kept.seen(number):
            assert kept.size <= most
            assert kept.size == 0 or kept.max() < most


def test_the_page_draws_the_kept_tokens_on_the_tiles(smolvlm):
    engine = Engine.load(smolvlm[1] / "onnx", threads=1)
    answer = engine.generate(pictures(), "is this a cat", GenerationOptions(max_new_tokens=2))
    view = KeptView.of(engine.manifest, pictures()[0], answer.kept)
    assert view.seen.size == (84, 56)  # 2 x 3 tiles of 28 pixels
    kept = answer.kept.seen(0)[0][1]
    patches = replace(Patches.of(engine.manifest), grid=Grid(2, 3))
    shown = patches.shown(kept)
    assert shown.shape == (56, 84)
    for token in range(24):  # 4 of each tile, two by two
        tile, within = divmod(token, 4)
        row = 28 * (tile // 3) + 14 * (within // 2) + 7
        column = 28 * (tile % 3) + 14 * (within % 2) + 7
        assert shown[row, column] == (token in kept)
    assert (view.pictures[0].kept, view.pictures[0].of) == (kept.size, 28)


def test_too_many_tiles_are_refused_before_they_are_made(smolvlm):
    engine = Engine.load(smolvlm[1] / "onnx", threads=1)
    with pytest.raises(
        CompExportError, match=r"tokens \(280 of them image tokens\), the model has 256"
    ):
        engine.generate([pictures()[1]] * 7, "what")


def test_the_slim_checkpoint_loads_through_auto_classes(smolvlm):
    checkpoint = smolvlm[1] / "checkpoint"
    assert type(AutoModelForImageTextToText.from_pretrained(checkpoint)).__name__.startswith("Comp")
    assert type(AutoProcessor.from_pretrained(checkpoint)).__name__ == "Idefics3Processor"


def test_a_smolvlm_is_pruned_alike_with_its_decoder_in_its_files(smolvlm, tmp_path):
    dense, run = smolvlm
    called(
        "prune",
        "--model",
        dense,
        "--rate",
        "0.4",
        "--out",
        tmp_path / "run",
        *QUICK,
        *MODES,
        "--stream",
    )
    plans = [json.loads((each / "plan.json").read_text()) for each in (run, tmp_path / "run")]
    assert plans[0] == plans[1]
    whole, streamed = ({}, {})
    for weights, folder in ((whole, run), (streamed, tmp_path / "run")):
        for file in (folder / "checkpoint").glob("*.safetensors"):
            weights |= load_file(file)
    assert whole.keys() == streamed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(streamed[name], tensor)


def test_a_plan_is_cut_without_the_model_in_memory(smolvlm, tmp_path):
    dense, run = smolvlm
    called("cut", "--model", dense, "--plan", run / "plan.json", "--out", tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert type(model).__name__ == "CompSmolVLMForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(checkpoint)).__name__ == "Idefics3Processor"
    plan = PruningPlan.load(run / "plan.json")
    block = plan.part("language")[0]
    kept = model.model.text_model.layers[0].mlp.up_proj.weight
    source = AutoModelForImageTextToText.from_pretrained(dense)
    whole = source.model.text_model.layers[0].mlp.up_proj.weight
    assert torch.equal(kept, whole[list(block.kept_channels)])


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
    """A run of a small InternVL with a Qwen3, exported."""
    base = tmp_path_factory.mktemp("internvl")
    save_tiled(tiny_tiled("internvl", seed=3, text_model_type="qwen3"), base / "dense")
    run = base / "run"
    called("prune", "--model", base / "dense", "--rate", "0.4", "--out", run, *QUICK, *MODES)
    called("onnx", run, "--no-check")
    return base / "dense", run


def test_an_internvl_answers_about_several_pictures_as_transformers(internvl):
    dense, run = internvl
    manifest = read_manifest(run / "onnx")
    assert (manifest.family, manifest.image_prompt.kind) == ("internvl", "internvl")
    assert (manifest.image_processor.tiles.most, manifest.vision.shuffle) == (9, 2)
    engine = Engine.load(run / "onnx-dense", threads=1)
    options = GenerationOptions(max_new_tokens=6)
    mine = engine.generate(pictures(), "what is this", options)
    processor = PictureProcessor.from_pretrained(dense)
    content = [*({"type": "image"} for _ in range(2)), {"type": "text", "text": "what is this"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(
        images=pictures(), text=[text], return_tensors="pt", add_special_tokens=False
    )
    model = AutoModelForImageTextToText.from_pretrained(dense)
    with torch.no_grad():
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    prompt = inputs["input_ids"].shape[1]
    assert mine.prompt_tokens == prompt
    assert list(mine.token_ids) == [int(each) for each in generated[0, prompt:] if each != 2]
    assert mine.image_tokens == len(inputs["pixel_values"]) * 4
    compressed = Engine.load(run / "onnx", threads=1)
    assert compressed.generate(pictures(), "what is this", options).kept.seen(0)


@pytest.mark.slow
def test_every_link_of_an_internvl_holds(internvl, tmp_path):
    dense, run = internvl
    report = called("verify", run, "--questions", "3", "--max-new-tokens", "4")
    assert report["ok"]
    assert report["first_links"][0]["name"] == "transformers = serve (onnx)"
    assert all(link["ok"] for link in report["first_links"])
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint")
    assert type(model).__name__ == "CompInternVLForConditionalGeneration"
    called("cut", "--model", dense, "--plan", run / "plan.json", "--out", tmp_path / "run")
    cut = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "checkpoint")
    plan = PruningPlan.load(run / "plan.json")
    block = plan.part("vision")[0]
    source = AutoModelForImageTextToText.from_pretrained(dense)
    kept = cut.model.vision_tower.encoder.layer[0].mlp.fc1.weight
    assert torch.equal(
        kept, source.model.vision_tower.encoder.layer[0].mlp.fc1.weight[list(block.kept_channels)]
    )


@pytest.mark.slow
def test_a_llava_of_siglip_and_qwen3_is_pruned_and_exported(tmp_path):
    config = tiny_config(
        kv_heads=2,
        decoder="qwen3",
        tower="siglip",
        text_head_dim=16,
        text_max_position_embeddings=256,
    )
    save_checkpoint(tiny_model(config, seed=4), tmp_path / "dense")
    run = tmp_path / "run"
    called("prune", "--model", tmp_path / "dense", "--rate", "0.4", "--out", run, *QUICK, *MODES)
    called("onnx", run)  # compares with transformers
    made = called("run", run, "--image", _saved(tmp_path), "--prompt", "what is this")
    assert made["image_tokens"] == 16


def _saved(folder):
    path = folder / "picture.png"
    pictures()[0].save(path)
    return path
