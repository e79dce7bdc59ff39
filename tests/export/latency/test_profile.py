"""`comp-export profile`: its graphs, its surfaces, and interruptions."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from comp.errors import CompExportError
from comp.latency.table import LatencyTable, dense_block
from comp.runs import open_run
from export.graph.builder import Target
from export.latency.blocks import drop_name, name_of
from export.latency.clock import Clock
from export.latency.grid import axes_of, monotone
from export.latency.held_out import models
from export.latency.llava_blocks import LlavaBlocks
from export.latency.profile import ProfileRequest, partial_of, profile
from export.latency.timings import Readings, Timing
from export.onnxruntime.graph import CPU
from tests.comp.small import small_adapter
from tests.export.measured import FAST, invoke, prune_by

TEXT = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A LLaVA whose language model is wide enough for measurable blocks."""
    directory = tmp_path_factory.mktemp("wide-llava") / "wide"
    small_adapter(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
    ).save(directory)
    return directory


def blocks_of(checkpoint, text=TEXT):
    return LlavaBlocks.of(checkpoint, Target(), text, 0)


def test_axes_go_from_the_narrowest_to_the_dense_block():
    axes = axes_of(208, 8, 704)
    assert axes.tokens == (1, 13, 26, 52, 104, 156, 208)
    assert axes.heads == (1, 2, 4, 6, 8)
    assert axes.channels == (16, 96, 176, 352, 528, 704)
    narrow = axes_of(5, 1, 8, fixed=True)
    assert (narrow.tokens, narrow.heads, narrow.channels) == ((5,), (1,), (8,))


def test_noise_is_averaged_away():
    rising = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert np.array_equal(monotone(rising), rising)
    # 3 before 2: at least 3 by the points before, at most 2 by the points after.
    assert monotone(np.array([1.0, 3.0, 2.0, 5.0])).tolist() == [1.0, 2.5, 2.5, 5.0]


@given(arrays(np.float64, (3, 4, 2), elements=st.floats(0, 100)))
def test_times_never_fall_along_an_axis(times):
    result = monotone(times)
    for axis in range(3):
        assert (np.diff(result, axis=axis) >= 0).all()
    assert result.min() >= times.min()
    assert result.max() <= times.max()


def test_blocks_equal_the_adapters(checkpoint):
    from comp.families.loading import load_adapter

    adapter = load_adapter(checkpoint, "cpu", None)
    assert blocks_of(checkpoint).dense_blocks() == tuple(map(dense_block, adapter.blocks))


def test_the_graphs_differ_by_whole_blocks(checkpoint):
    """In the operators of attention and FFN: as many more as blocks."""

    def count(graph, *kinds):
        return sum(node.op_type in kinds for node in graph._nodes)

    pairs = {pair.name: pair for pair in blocks_of(checkpoint).pairs()}
    for name in (name_of("language", 2, 16), name_of("language", 1, 512)):
        large, small = pairs[name].graphs()
        more = pairs[name].blocks
        assert more == 2
        assert count(large, "GroupQueryAttention") - count(small, "GroupQueryAttention") == more
        assert count(large, "MatMul") - count(small, "MatMul") == 7 * more
    large, small = pairs[name_of("vision", 3, 16)].graphs()
    assert (count(large, "MatMul") - count(small, "MatMul")) == 6 * pairs[
        name_of("vision", 3, 16)
    ].blocks
    dropping, plain = pairs[drop_name("language", 4)].graphs()
    assert count(dropping, "TopK") > 0 == count(plain, "TopK")
    assert count(dropping, "MatMul") >= count(plain, "MatMul")


def test_surfaces_are_differences_of_measurements(checkpoint, tmp_path):
    """Measurements that are exact sums are split into exactly their terms."""
    blocks = blocks_of(checkpoint)
    readings = Readings(tmp_path / "partial", {})
    language, tower = blocks.axes["language"], blocks.axes["vision"]
    readings.add("embedding", Timing({}, {n: 0.001 * n for n in language.tokens}))
    for part, axes in blocks.axes.items():
        for heads in axes.heads:
            for channels in axes.channels:
                block = {n: 0.02 * n * heads + 0.0005 * n * channels for n in axes.tokens}
                rest = {n: 1.0 + 0.02 * n * heads for n in axes.tokens}
                readings.add(name_of(part, heads, channels), Timing(block, rest))
    for heads in language.heads:
        readings.add(
            drop_name("language", heads), Timing({n: 0.003 * n for n in language.tokens}, {})
        )
    result = {(s.part, s.kind): s for s in blocks.surfaces(readings)}
    narrow, n = language.channels[0], language.tokens[3]
    assert result["language", "attention"].at(n, heads=3) == pytest.approx(
        0.02 * n * 3 + 0.0005 * n * narrow
    )
    assert result["language", "ffn"].at(n, channels=512) == pytest.approx(
        0.0005 * n * (512 - narrow)
    )
    assert result["language", "ffn"].at(n, channels=narrow) == 0
    assert result["language", "last"].at(n, heads=2) == pytest.approx(1.0 + 0.02 * n * 2)
    assert result["language", "drop"].at(n, heads=2) == pytest.approx(0.003 * n)
    assert result["embedding", "fixed"].at(n) == pytest.approx(0.001 * n)
    seen = tower.tokens[0]
    assert result["vision", "attention"].at(seen, heads=2) == pytest.approx(
        0.02 * seen * 2 + 0.0005 * seen * tower.channels[0]
    )


def test_measurements_are_medians_of_rounds_and_are_saved(tmp_path):
    path = tmp_path / "table.json.partial"
    readings = Readings(path, {"threads": 1})
    for ms in (3.0, 1.0, 7.0):
        readings.add("a", Timing({4: ms}, {4: 10 * ms}))
    assert readings["a"] == Timing({4: 3.0}, {4: 30.0})
    again = Readings(path, {"threads": 1})
    assert (len(again), again.rounds("a"), again["a"]) == (3, 3, readings["a"])
    assert len(Readings(path, {"threads": 2})) == 0  # of other settings
    path.write_text("{")
    with pytest.raises(CompExportError, match="delete it"):
        Readings(path, {"threads": 1})


def test_an_interrupted_profile_resumes(checkpoint, tmp_path, monkeypatch):
    request = ProfileRequest(
        "wide", blocks_of(checkpoint), Clock(0, 1, CPU, 1), rounds=2, held_out=0
    )
    names = [name for name, _ in request.jobs()]
    measured, stop = [], len(names) + 3

    def jobs(self):
        def measure(name):
            if len(measured) == stop:
                raise KeyboardInterrupt
            measured.append(name)
            tokens = self.blocks.axes["vision" if "vision" in name else "language"].tokens
            return Timing(dict.fromkeys(tokens, 1.0), dict.fromkeys(tokens, 1.0))

        return [(name, lambda name=name: measure(name)) for name in names]

    monkeypatch.setattr(ProfileRequest, "jobs", jobs)
    out = tmp_path / "table.json"
    with pytest.raises(KeyboardInterrupt):
        profile(request, out)
    assert not out.exists()
    assert partial_of(out).exists()
    stop = math.inf
    table = profile(request, out)
    assert measured == names * 2  # each once a round, none again
    assert not partial_of(out).exists()
    assert LatencyTable.load(out) == table


def test_held_out_plans_are_plans_of_the_model(checkpoint):
    blocks = blocks_of(checkpoint)
    dense, *plans = models(blocks, 3)
    assert dense.plan is None
    assert [model.name for model in plans] == ["plan 1", "plan 2", "plan 3"]
    for model in plans:
        assert blocks.shape.pruned(model.plan).sizes.drops == model.plan.drops
        assert model.plan.rate == pytest.approx(model.plan.flops_rate)
        assert TEXT >= model.on.text_tokens >= 1
    assert len({model.plan.macs for model in plans}) == 3
    assert [model.plan for model in models(blocks, 3)][1:] == [model.plan for model in plans]


def test_profile_prune_onnx(checkpoint, tmp_path):
    """Run the commands as a user does: the rate is of milliseconds of a measured table."""
    table_file, out = tmp_path / "table.json", tmp_path / "run"
    model = ("--model", str(checkpoint))
    words = ("--out", str(table_file), "--text-tokens", str(TEXT), "--device", "cpu")
    printed = json.loads(invoke("profile", *model, *words, *FAST, "--json").stdout)
    table = LatencyTable.load(table_file)
    assert table.target.model_dump() == printed["target"]
    assert table.target.threads == 1
    assert {"cpu", "cores"} <= table.machine.keys()
    assert {"onnxruntime", "python"} <= table.versions.keys()
    assert [each.name for each in table.held_out] == ["dense", "plan 1"]
    for each, reported in zip(table.held_out, printed["held_out"], strict=True):
        assert each.predicted_ms > 0 < each.measured_ms
        assert reported["error"] == each.predicted_ms / each.measured_ms - 1
    assert printed["mean_error"] == abs(table.held_out[1].error)
    with pytest.raises(CompExportError, match="--force"):
        invoke("profile", *model, *words, *FAST)

    prune_by(table_file, checkpoint, out)
    exported = json.loads(invoke("onnx", str(out), "--no-check", "--json").stdout)
    assert set(exported["artifacts"]) == {"compressed", "dense"}
    manifest = json.loads((out / "onnx" / "manifest.json").read_text())
    plan = open_run(out).load_plan()
    assert manifest["rate"] == pytest.approx(1 - plan.macs / plan.macs_dense)  # of FLOPs


def test_models_that_cannot_be_measured_are_refused(checkpoint, tmp_path):
    out = ("--out", str(tmp_path / "table.json"))
    with pytest.raises(CompExportError, match="profiling supports llava, clip"):
        invoke("profile", "--model", "tiny-blip-vqa", *out)
    with pytest.raises(CompExportError, match="no directory"):
        invoke("profile", "--model", "./nothing", *out)
    with pytest.raises(CompExportError, match="positions for"):
        invoke("profile", "--model", str(checkpoint), "--text-tokens", "100000", *out)
    small_adapter(num_hidden_layers=1).save(tmp_path / "flat")
    with pytest.raises(CompExportError, match="2 and 1 are the fewest"):
        invoke("profile", "--model", str(tmp_path / "flat"), *out)
    config = json.loads((checkpoint / "config.json").read_text())
    slim = tmp_path / "slim"
    slim.mkdir()
    (slim / "config.json").write_text(json.dumps(config | {"model_type": "comp_llava"}))
    with pytest.raises(CompExportError, match="compressed already"):
        invoke("profile", "--model", str(slim), *out)
    assert not (tmp_path / "table.json").exists()
