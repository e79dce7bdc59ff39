"""`comp-export profile` of a CLIP: its graphs, its surfaces, and pruning by its table."""

import json

import numpy as np
import pytest

from comp.errors import CompExportError
from comp.flops.encoder import clip_macs
from comp.latency.table import LatencyTable, dense_block
from comp.plan import Workload
from export.graph.builder import Target
from export.latency.blocks import drop_name, fixed_name, name_of
from export.latency.clip_blocks import ClipBlocks
from export.latency.clock import Clock
from export.latency.held_out import models
from export.latency.timings import Readings, Timing, loaded
from export.onnxruntime.graph import CPU
from tests.comp.small_clip import FFN, HEADS, LAYERS, random_clip
from tests.export.measured import FAST, invoke, prune_by

TEXT, TOWER = 16, 145


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip") / "small"
    random_clip(1, width=256).save(directory)
    return directory


@pytest.fixture(scope="module")
def blocks(checkpoint):
    return ClipBlocks.of(checkpoint, Target(), TEXT, 0)


def count(graph, *kinds):
    return sum(node.op_type in kinds for node in graph._nodes)


def test_blocks_and_lengths_equal_the_adapters(checkpoint, blocks):
    from comp.families.loading import load_adapter

    adapter = load_adapter(checkpoint, "cpu", None)
    assert blocks.dense_blocks() == tuple(map(dense_block, adapter.blocks))
    assert blocks.image_tokens == blocks.axes["vision"].tokens[-1] == TOWER
    assert ClipBlocks.of(checkpoint, Target(), None, 0).text_tokens == 64  # all positions


@pytest.mark.parametrize("part", ["vision", "language"])
def test_the_graphs_differ_in_blocks_places_and_surroundings(blocks, part):
    pairs = {pair.name: pair for pair in blocks.pairs()}
    pair = pairs[name_of(part, 2, 16)]
    large, small = pair.graphs()
    assert pair.blocks == LAYERS - 1
    assert count(large, "MatMul") - count(small, "MatMul") == 6 * pair.blocks
    dropping, plain = pairs[drop_name(part, HEADS)].graphs()
    assert count(dropping, "TopK") == 2 * (LAYERS - 1)  # the kept tokens, and their order
    assert count(plain, "TopK") == 0
    whole, block = pairs[fixed_name(part)].graphs()
    embedded = 2 if part == "vision" else 1  # the projection, and of pixels the patches
    assert count(whole, "MatMul", "Conv", "Gemm") - count(block, "MatMul") == embedded


def test_every_pair_runs_on_every_number_of_tokens(blocks, tmp_path):
    clock = Clock(0, 1, CPU, 1)
    for number, pair in enumerate(blocks.pairs()):
        folder = tmp_path / str(number)
        folder.mkdir()
        graphs = loaded(pair.graphs(), folder, clock)
        for tokens in (pair.tokens[0], pair.tokens[-1]):
            feeds = pair.feeds(tokens)
            for graph, each in zip(
                graphs, feeds if isinstance(feeds, list) else [feeds] * 2, strict=True
            ):
                (result, *_) = graph.run(each).values()
                assert np.isfinite(result).all(), (pair.name, tokens)


def test_surfaces_are_differences_of_measurements(blocks, tmp_path):
    """Measurements that are exact sums are split into exactly their terms."""
    readings = Readings(tmp_path / "partial", {})
    for part, axes in blocks.axes.items():
        for heads in axes.heads:
            readings.add(drop_name(part, heads), Timing({n: 0.003 * n for n in axes.tokens}, {}))
            for channels in axes.channels:
                block = {n: 0.02 * n * heads + 0.0005 * n * channels for n in axes.tokens}
                rest = {n: 1.0 + 0.02 * n * heads for n in axes.tokens}
                readings.add(name_of(part, heads, channels), Timing(block, rest))
        readings.add(fixed_name(part), Timing({n: 0.5 + n for n in axes.tokens}, {}))
    result = {(s.part, s.kind): s for s in blocks.surfaces(readings)}
    for part, axes in blocks.axes.items():
        narrow, n = axes.channels[0], axes.tokens[3]
        assert result[part, "attention"].at(n, heads=3) == pytest.approx(
            0.02 * n * 3 + 0.0005 * n * narrow
        )
        assert result[part, "ffn"].at(n, channels=FFN) == pytest.approx(0.0005 * n * (FFN - narrow))
        assert result[part, "last"].at(n, heads=2) == pytest.approx(1.0 + 0.02 * n * 2)
        assert result[part, "drop"].at(n, heads=2) == pytest.approx(0.003 * n)
        assert result[part, "fixed"].at(axes.tokens[-1]) == pytest.approx(0.5 + axes.tokens[-1])


def test_held_out_plans_are_plans_of_the_model(blocks):
    dense, *plans = models(blocks, 2)
    assert dense.on == Workload(image_tokens=TOWER, text_tokens=TEXT)
    for model in plans:
        shape = blocks.shape.pruned(model.plan)
        assert len(shape.drops) == 2 * (LAYERS - 1)
        on, ratios = model.plan.workload, {}
        for drop in shape.drops:
            kept = (drop.vision_keep_ratio, drop.text_keep_ratio)
            ratios[drop.place] = kept[drop.part == "language"]
        assert model.plan.macs == sum(clip_macs(shape.sizes, on, ratios).values())
        assert model.plan.rate == pytest.approx(1 - model.plan.macs / model.plan.macs_dense)


@pytest.mark.slow
def test_profile_prune_onnx(checkpoint, tmp_path):
    """Run the commands as a user does: the rate is of milliseconds of a measured table."""
    table_file, out = tmp_path / "table.json", tmp_path / "run"
    words = ("--out", table_file, "--text-tokens", TEXT, "--device", "cpu", "--json")
    printed = json.loads(invoke("profile", "--model", checkpoint, *words, *FAST).stdout)
    table = LatencyTable.load(table_file)
    assert (table.family, table.image_tokens, table.tower_length) == ("clip", TOWER, TOWER)
    assert [each.name for each in table.held_out] == ["dense", "plan 1"]
    assert printed["held_out"][0]["predicted_ms"] > 0 < printed["held_out"][0]["measured_ms"]
    prune_by(table_file, checkpoint, out)
    invoke("onnx", out, "--no-check")


def test_models_that_cannot_be_measured_are_refused(checkpoint, tmp_path):
    with pytest.raises(CompExportError, match="positions for 64"):
        ClipBlocks.of(checkpoint, Target(), 65, 0)
    config = json.loads((checkpoint / "config.json").read_text())
    for name, changes, reason in (
        ("slim", {"model_type": "comp_clip"}, "compressed already"),
        (
            "flat",
            {"text_config": config["text_config"] | {"num_hidden_layers": 1}},
            "3 blocks for images and 1 for texts",
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CompExportError, match=reason):
            ClipBlocks.of(tmp_path / name, Target(), None, 0)
