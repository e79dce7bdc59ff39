"""Rounding to 4 bits by calibration: NNCF's integers are exported exactly, and change outputs less."""

import json
import sys

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from comp.checkpoints.tying import LM_HEAD
from comp.cli import cli
from comp.errors import CompExportError
from export import calibration
from export.calibration import _nncf, _rounded
from export.graph.builder import GraphBuilder
from export.graph.integer_rounding import nibbles, packed_nibbles, rounded
from export.graph.linear import linear
from export.openvino.graph import computes_bfloat16
from export.proof.integer_weights import integer_weights
from serve.backends.onnxruntime.vnni_check import multiplies_exactly
from tests.export.memory_weights import MemoryWeights, dequantised

WIDTHS = {"wide": 128, "middle": 96, "narrow": 48, "odd": 40}
LAYER = "model.language_model.layers.0"
ROWS = 24
FUSED = ("(onnx-int4)", "(onnx-dense-int4)")  # of ONNX Runtime alone


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=20).filter(lambda row: len(row) % 2 == 0))
def test_packed_4_bit_weights_unpack(row):
    values = np.array([row, row[::-1]], np.int8)
    packed = packed_nibbles(values)
    assert packed.shape == (2, len(row) // 2)
    assert np.array_equal(nibbles(packed).astype(np.int8), values)


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """Layers of several widths and a head in a graph: weights, inputs, and NNCF's result."""
    random = np.random.default_rng(0)
    weights = {
        f"{LAYER}.{name}.weight": random.standard_normal((ROWS, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    weights[LM_HEAD] = random.standard_normal((ROWS, 64)).astype(np.float32)
    graph = GraphBuilder("decoder_model", calibration.FLOAT32)
    scales = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        x = graph.input(layer, ir.DataType.FLOAT, (1, "n", weight.shape[1]))
        y = linear(graph, MemoryWeights(weights), x, layer)
        graph.output(f"{layer}.y", y, ir.DataType.FLOAT, (1, "n", ROWS))
        # Some inputs are far larger than the rest, as in language models.
        scales[layer] = np.where(np.arange(weight.shape[1]) % 16 == 3, 30.0, 0.3)
    path = tmp_path_factory.mktemp("layers") / "decoder_model.onnx"
    graph.save(path)
    feeds = [
        {
            layer: (random.standard_normal((1, 32, len(scale))) * scale).astype(np.float32)
            for layer, scale in scales.items()
        }
        for _ in range(4)
    ]
    return weights, feeds, dict(_rounded(_nncf(), path, feeds))


def test_layers_of_8_bits_are_not_calibrated(layers):
    _, _, actual = layers
    assert set(actual) == {f"{LAYER}.{name}.weight" for name in ("wide", "middle", "narrow")}


@pytest.mark.parametrize(("name", "groups"), [("wide", 2), ("middle", 3), ("narrow", 3)])
def test_calibration_changes_outputs_less_than_rounding_to_nearest(layers, name, groups):
    weights, feeds, actual = layers
    weight, quantised = weights[f"{LAYER}.{name}.weight"], actual[f"{LAYER}.{name}.weight"]
    assert quantised.values.shape == weight.shape
    assert quantised.scales.shape == (ROWS, groups)
    x = np.concatenate([each[f"{LAYER}.{name}"][0] for each in feeds])

    def error(matrix):
        return np.square(x @ (matrix - weight).T).mean()

    assert error(dequantised(quantised)) < 0.8 * error(dequantised(rounded(weight, 4)))


def call(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "question"])
def test_both_flavours_have_the_same_calibrated_integers_and_verify(fresh_run, kind):
    run = fresh_run(kind)
    options = (
        "--precision",
        "int4",
        "--rounding",
        "calibrated",
        "--examples",
        "4",
        "--no-check",
        "--json",
    )
    assert call("onnx", run, "--no-check", "--precision", "int4").exit_code == 0
    nearest = integer_weights(run / "onnx-int4")
    for flavour in ("onnxruntime", "standard"):
        done = call("onnx", run, "--flavour", flavour, *options, "--force")
        assert json.loads(done.stdout)["rounding"] == "calibrated", done.output
    fused, standard = (integer_weights(run / name) for name in ("onnx-int4", "onnx-standard-int4"))
    assert set(fused) == set(nearest)
    assert all(np.array_equal(fused[name], standard[name]) for name in fused)
    assert any(not np.array_equal(fused[name], nearest[name]) for name in fused)
    manifest = json.loads((run / "onnx-dense-int4" / "manifest.json").read_text())
    assert manifest["rounding"] == "calibrated"
    call(
        "verify",
        run,
        "--questions",
        "4",
        "--max-new-tokens",
        "3",
        "--answer-seconds",
        "0",
        "--device",
        "cpu",
    )
    for link in json.loads((run / "reports" / "verify.json").read_text())["links"]:
        if not multiplies_exactly() and link["name"].endswith(FUSED):
            continue  # no VNNI: products of bytes saturate, and the bound says so
        assert not link["answers"]["different"], link
        assert link["max_logit_difference"] <= link["bound"], link


def test_flavours_are_compared_with_their_own_rounding(fresh_run):
    run = fresh_run("clip")
    call("onnx", run, "--no-check", "--precision", "int4", "--no-dense")
    options = ("--precision", "int4", "--rounding", "calibrated", "--examples", "2", "--no-dense")
    assert call("onnx", run, "--flavour", "standard", *options).exit_code == 0
    call("verify", run, "--questions", "4", "--answer-seconds", "0", "--device", "cpu")
    links = json.loads((run / "reports" / "verify.json").read_text())["links"]
    # Two in ONNX Runtime, one in OpenVINO, and that once more in bfloat16 where this CPU computes it.
    assert sum("int4" in link["name"] for link in links) == 3 + computes_bfloat16()
    assert all(link["max_logit_difference"] <= link["bound"] for link in links)
    weights = json.loads((run / "reports" / "verify.json").read_text())["weights"]
    assert {each["name"] for each in weights} >= {
        "slim weights = int4 weights (onnx-int4)",
        "slim weights = int4 weights (onnx-standard-int4)",
    }
    assert all(each["ok"] for each in weights), weights


def test_bad_input_is_refused(fresh_run, monkeypatch, tmp_path):
    run = fresh_run("clip")

    def refused(*words):
        result = CliRunner().invoke(cli, ["onnx", str(run), *map(str, words), "--force"])
        assert isinstance(result.exception, CompExportError)
        return str(result.exception)

    calibrated = ("--rounding", "calibrated")
    assert "--precision float32: it is for int4" in refused(*calibrated)
    assert "--precision int8: it is for int4" in refused(*calibrated, "--precision", "int8")
    assert "pass --rounding calibrated or --precision float16 too" in refused("--data", tmp_path)
    calibrated += ("--precision", "int4")
    assert "nothing.jsonl" in refused(*calibrated, "--data", tmp_path / "nothing.jsonl")
    monkeypatch.setattr(calibration, "memory_mb", lambda: 0.1)
    assert "take --rounding nearest, or calibrate on a larger" in refused(*calibrated)
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert "[calibrate]'" in refused(*calibrated)
