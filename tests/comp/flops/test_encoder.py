"""MACs of CLIP and BLIP: the published figures, the formulas, and a count by hooks."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import BlipConfig, CLIPConfig

from comp.checkpoints.encoder_shape import (
    PACKAGED,
    EncoderShape,
    packaged_shape,
)
from comp.checkpoints.shapes import BlockSize, TextShape
from comp.cli import cli
from comp.errors import CompExportError
from comp.flops.block import Memory, tower_macs
from comp.flops.encoder import compositions, text_macs
from comp.masks import StructureCounts
from comp.plan import Workload
from tests.comp import small_blip, small_clip

# Published GMACs, to four places as the papers' own formulas give them.
PUBLISHED = {
    "blip-nlvr": 132.5407,
    "blip-caption": 65.7196,
    "blip-vqa": 186.1213,
    "blip-retrieval": 153.2425,
    "clip-l14-336": 395.7007,
}
PACKAGED_BLIPS = {
    "question": "blip-vqa",
    "caption": "blip-caption",
    "retrieval": "blip-retrieval",
    "statement": "blip-nlvr",
}


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_published_figures(name, expected):
    (published,) = [c for c in compositions(packaged_shape(name)) if c.name == "published"]
    assert published.macs / 1e9 == pytest.approx(expected, abs=1e-4)


def test_published_figures_of_one_pair():
    pairs = {name: compositions(packaged_shape(name))[0] for name in PACKAGED}
    assert pairs["clip-l14-336"].macs / 1e9 == pytest.approx(197.762, abs=1e-3)
    assert pairs["clip-l14-336"].parts["vision"] / 1e9 == pytest.approx(191.105, abs=1e-3)
    assert pairs["clip-l14-336"].parts["language"] / 1e9 == pytest.approx(6.657, abs=1e-3)
    assert pairs["blip-retrieval"].macs / 1e9 == pytest.approx(70.573, abs=1e-3)


def vit(tokens, width, layers, patch):
    """The formula that UPop and MADTP count with."""
    n, d = tokens, width
    return (n - 1) * patch * d + layers * (12 * n * d * d + 2 * n * n * d + 10 * n * d) + 5 * n * d


def test_tower_macs_equal_the_formula():
    for name in PACKAGED:
        tower = packaged_shape(name).vision
        expected = vit(tower.tokens, tower.hidden_size, len(tower.blocks), tower.patch_dim)
        assert tower_macs(tower) == expected


@pytest.mark.parametrize("branches", [0, 1, 2])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (6, 1), (6, 6)])
def test_text_macs_equal_the_formula(branches, rows, inputs):
    d, length, seen, layers = 48, 7, 19, 4
    blocks = tuple(BlockSize(4, 4 * d, (4,) * branches, merges=n >= 2) for n in range(layers))
    shape = TextShape(hidden_size=d, head_dim=d // 4, vocab_size=100, positions=16, blocks=blocks)
    memory = Memory(seen, d, inputs)
    total = 5 * rows * length * d
    for block in blocks:
        total += 12 * rows * length * d * d + 2 * rows * length * length * d
        cross = 2 * rows * length * d * d + 2 * rows * length * seen * d + 2 * inputs * seen * d * d
        total += branches * cross + 5 * rows * length * d * (2 + (branches > 0))
        total += 2 * rows * length * d * d if block.merges and branches else 0
    assert text_macs(shape, length, memory, rows) == total


def test_dropped_tokens_are_not_counted():
    """Two thirds are dropped after the attention of the first block, for its FFN and all later blocks."""
    tower = packaged_shape("blip-caption").vision
    n, left, d = tower.tokens, tower.tokens // 3, tower.hidden_size
    counts = [(n, left)] + [(left, left)] * (len(tower.blocks) - 1)
    width = tower.blocks[0].channels
    first = 4 * n * d * d + 2 * n * n * d + 2 * left * d * width + 5 * d * (n + left)
    others = (len(tower.blocks) - 1) * (12 * left * d * d + 2 * left * left * d + 10 * left * d)
    patches = (n - 1) * tower.patch_dim * d
    assert tower_macs(tower, counts) == patches + first + others + 5 * left * d


def test_defaults_are_those_of_transformers():
    actual = EncoderShape.from_config({"model_type": "clip"})
    expected = EncoderShape.from_config(CLIPConfig().to_dict())
    assert actual == expected
    name = "BlipForImageTextRetrieval"
    bare = EncoderShape.from_config({"model_type": "blip", "architectures": [name]})
    full = BlipConfig().to_dict() | {"architectures": [name]}
    assert bare == EncoderShape.from_config(full)


@pytest.mark.parametrize("task", ["question", "caption", "retrieval", "statement"])
def test_macs_equal_the_matrix_products_of_torch(task):
    """Matrix products of a request, counted by torch itself, and ours without the LayerNorms."""
    from torch.utils.flop_counter import FlopCounterMode

    from comp.tiny_models.tiny_blip import blip_processor, tiny_blip

    model = tiny_blip(task, blip_processor().tokenizer).eval()
    architecture = type(model).__name__
    config = model.config.to_dict() | {"architectures": [architecture]}
    shape = EncoderShape.from_config(config)
    pixels, ids = torch.randn(1, 3, 168, 168), torch.full((1, 9), 7)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.vision_model(pixels)
    tower = shape.vision
    norms = 5 * tower.tokens * tower.hidden_size * (2 * len(tower.blocks) + 1)
    # The [CLS] of a BLIP is normalised twice; products only are compared.
    assert counter.get_total_flops() // 2 == tower_macs(tower) - norms
    seen = torch.randn(1, 11, shape.text.hidden_size)
    text = getattr(model, "text_encoder", None) or model.text_decoder.bert
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if task == "statement":
            text(ids, None, torch.stack([seen, seen], 1))
        else:
            text(input_ids=ids, encoder_hidden_states=seen)
    norms = 5 * 9 * shape.text.hidden_size * (3 * len(shape.text.blocks) + 1)
    ours = text_macs(shape.text, 9, Memory(11, shape.text.hidden_size)) - norms
    assert counter.get_total_flops() // 2 == ours


def test_the_command_names_the_unit_of_each_figure(tmp_path):
    def call(*words):
        return CliRunner().invoke(cli, ["flops", *map(str, words)], catch_exceptions=False).stdout

    actual = json.loads(call("--model", "blip-nlvr", "--json"))
    (published,) = actual["compositions"]
    assert published["macs"] == 132_540_715_008
    assert "two images, one text of 36 tokens" in published["of"]
    text = call("--model", "blip-vqa")
    assert "186.121" in text
    assert "32 questions" in text
    parts = {"text_config": {}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | parts))
    assert "pair: one image and one text of 77 tokens" in call("--model", tmp_path)
    with pytest.raises(CompExportError, match="--drop applies only to a LLaVA"):
        call("--model", "clip-b16", "--drop", "8:0.5")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"} | parts))
    with pytest.raises(CompExportError, match="BlipForQuestionAnswering"):
        call("--model", tmp_path)


def flops(*words):
    result = CliRunner().invoke(cli, ["flops", *map(str, words), "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def counted(adapter, plan, on):
    """Count as the search does: on the dense model, from numbers of heads, channels and tokens."""
    keys = [((block.part, block.index), block) for block in plan.blocks]
    counts = StructureCounts(
        {key: len(block.kept_heads) for key, block in keys},
        {key: len(block.kept_channels) for key, block in keys if block.intermediate_size},
    )
    shares = {drop.place: (drop.vision_keep_ratio, drop.text_keep_ratio) for drop in plan.drops}
    return adapter.macs(counts, shares, on)


@pytest.mark.parametrize("task", small_blip.TASKS)
def test_a_cut_blip_has_the_macs_counted_by_the_search(task, tmp_path):
    adapter = small_blip.random_blip(task)
    plan = small_blip.random_plan(adapter, seed=3)
    adapter.save(tmp_path / "dense")
    adapter.cut(plan).save(tmp_path / "slim")
    check_cut(adapter, plan, tmp_path)


def test_a_cut_clip_has_the_macs_counted_by_the_search(tmp_path):
    adapter = small_clip.random_clip()
    plan = small_clip.random_plan(seed=3)
    adapter.save(tmp_path / "dense")
    adapter.cut(plan).save(tmp_path / "slim")
    check_cut(adapter, plan, tmp_path)


def check_cut(adapter, plan, folder):
    actual = flops("--model", folder / "slim")
    on = Workload(**actual["workload"])
    assert on.image_tokens == getattr(adapter, "images", 1) * adapter.shape.vision.tokens
    assert actual["macs"] == sum(actual["parts"].values()) == counted(adapter, plan, on)
    assert actual["dense"]["macs"] == adapter.macs(StructureCounts({}, {}), {}, on)
    assert actual["rate"] == 1 - actual["macs"] / actual["dense"]["macs"] > 0
    other = flops("--model", folder / "slim", "--text-tokens", 5)
    assert other["workload"] == {"image_tokens": on.image_tokens, "text_tokens": 5}
    # For a run: the plan's own workload, and the dense model that it names.
    plan.model_copy(update={"model": str(folder / "dense")}).save(folder / "plan.json")
    of_plan = flops("--plan", folder / "plan.json")
    assert of_plan["workload"] == plan.workload.model_dump()
    assert of_plan["macs"] == counted(adapter, plan, plan.workload)
    with pytest.raises(CompExportError, match="compressed already"):
        flops("--model", folder / "slim", "--plan", folder / "plan.json")
    with pytest.raises(CompExportError, match=r"--text-tokens 5000: the model reads texts of 1 to"):
        flops("--model", folder / "slim", "--text-tokens", 5000)
    name = "clip-b16" if plan.family == "clip" else PACKAGED_BLIPS[adapter.shape.task]
    with pytest.raises(CompExportError, match="which the model has not"):
        flops("--model", name, "--plan", folder / "plan.json")
    table = CliRunner().invoke(cli, ["flops", "--model", str(folder / "slim")]).stdout
    assert f"{on.image_tokens} image and {on.text_tokens} text tokens" in table
    assert f"{actual['rate']:.1%}" in table
