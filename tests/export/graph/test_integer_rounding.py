"""Weights of 8 and 4 bits: the rounding, the layers of both flavours, and whole artifacts."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.cli import cli
from comp.errors import CompExportError
from export.artifact.weight_groups import group_of
from export.exporter import Origin, export_artifact
from export.graph.builder import GraphBuilder, Target
from export.graph.integer_linear import bits_of
from export.graph.integer_rounding import rounded
from export.graph.linear import linear
from export.openvino.graph import computes_bfloat16
from export.proof.integer_weights import integer_weights, replaced_weights
from serve.artifacts import ArtifactVariant
from serve.backends.onnxruntime import runtime as backend
from serve.backends.onnxruntime.vnni_check import GRAPH, multiplies_exactly
from tests.export.memory_weights import MemoryWeights, dequantised
from tests.serve.largest_bytes import largest_bytes

NAME = "model.language_model.layers.0.mlp.down_proj"
FORMS = [(f, p) for f in ("onnxruntime", "standard") for p in ("int8", "int4")]


def test_rounding_to_8_bits_by_hand():
    actual = rounded(np.array([[127.0, -63.6, 0.4], [0.0, 0.0, 0.0]]), 8)
    assert actual.values.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert actual.scales.tolist() == [[1.0], [1.0]]


def test_rounding_to_4_bits_by_hand():
    weight = np.zeros((1, 16))
    weight[0, :4] = [8.0, -8.0, 3.4, -1.6]
    actual = rounded(weight, 4)
    # The first of the extremes is rounded to -8, so the scale is -1; its opposite is clipped to 7.
    assert actual.scales.tolist() == [[-1.0]]
    assert actual.values[0, :4].astype(int).tolist() == [-8, 7, -3, 2]
    assert dequantised(actual)[0, :4].tolist() == [8.0, -7.0, 3.0, -2.0]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 12), st.sampled_from([4, 8]), st.integers(0, 99))
def test_rounding_error_is_within_one_step(rows, sixteens, bits, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, 16 * sixteens)).astype(np.float32)
    actual = rounded(weight, bits)
    steps = np.abs(actual.scales).repeat(weight.shape[1] // actual.scales.shape[1], axis=1)
    # Half a step; with 16 values the opposite of the extreme moves by a whole step.
    most = steps / 2 if bits == 8 else np.where(actual.values.astype(int) == 7, steps, steps / 2)
    assert (np.abs(dequantised(actual) - weight) <= most * 1.0001).all()


def test_the_largest_group_that_divides_the_width():
    assert [group_of(width) for width in (128, 96, 48, 40)] == [64, 32, 16, None]
    with pytest.raises(ValueError, match="width of 40"):
        rounded(np.ones((2, 40)), 4)


def layer(flavour, precision, weight, name=NAME):
    """A linear layer alone, in ONNX Runtime."""
    graph = GraphBuilder("decoder_model", Target(flavour, precision))
    x = graph.input("x", ir.DataType.FLOAT, (1, "n", weight.shape[1]))
    y = linear(graph, MemoryWeights({f"{name}.weight": weight}), x, name)
    graph.output("y", y, ir.DataType.FLOAT, (1, "n", len(weight)))
    session = ort.InferenceSession(
        ir.serde.serialize_model(graph.model()).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    return lambda x: session.run(None, {"x": x})[0]


@pytest.mark.parametrize(("flavour", "precision"), FORMS)
@pytest.mark.parametrize("width", [128, 48, 40])
def test_a_layer_multiplies_by_its_integers(flavour, precision, width):
    if flavour == "onnxruntime" and not multiplies_exactly():
        pytest.skip("this CPU has no VNNI: ONNX Runtime's products of bytes saturate")
    random = np.random.default_rng(width)
    weight = random.standard_normal((24, width)).astype(np.float32)
    x = random.standard_normal((1, 7, width)).astype(np.float32)
    bits = 4 if precision == "int4" and width != 40 else 8
    integers = dequantised(rounded(weight, bits))
    # An input may change by half a step of 255 over the whole range, or by a group's int8 rounding.
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    most = step * np.abs(integers).sum(axis=1)
    off = np.abs(layer(flavour, precision, weight)(x) - x @ integers.T)
    assert (off <= most).all()
    assert off.max() < 0.2 * np.abs(x @ (weight - integers).T).max() + most.max()


def test_layers_kept_at_8_bits():
    target = Target("onnxruntime", "int4")
    assert bits_of(GraphBuilder("decoder_model", target), NAME, 64) == 4
    assert bits_of(GraphBuilder("decoder_model", target), NAME, 40) == 8
    assert bits_of(GraphBuilder("decoder_model", target), "lm_head", 64) == 8
    assert bits_of(GraphBuilder("vision_encoder", target), NAME, 64) == 8
    assert bits_of(GraphBuilder("decoder_model", Target()), NAME, 64) is None


@pytest.mark.parametrize(("flavour", "precision"), FORMS)
def test_an_artifact_holds_the_rounded_checkpoint(gqa, tmp_path, flavour, precision):
    model, checkpoint = gqa
    plain = export_artifact(checkpoint, tmp_path / "float32", Origin("tiny"), Target(flavour))
    export_artifact(checkpoint, tmp_path / "q", Origin("tiny"), Target(flavour, precision))
    actual = integer_weights(tmp_path / "q")
    weights = MemoryWeights(model.state_dict())
    assert sum(matrix.size for matrix in actual.values()) > 0.5 * plain.params
    for name, matrix in actual.items():
        whole = weights.read(name)
        eight = "language_model" not in name or group_of(whole.shape[1]) is None
        bits = 8 if precision == "int8" or eight else 4
        assert np.array_equal(matrix, dequantised(rounded(whole, bits))), name


def test_weights_are_replaced_only_inside_the_context():
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight  # tied
    before = model[0].weight.clone()
    ones = np.ones((4, 3), np.float32)
    with replaced_weights(model, {"1.weight": ones}):
        assert torch.equal(model[1].weight, torch.ones(4, 3))
        assert torch.equal(model[0].weight, before)
    assert model[1].weight is model[0].weight
    with (
        pytest.raises(ValueError, match=r"no 2\.weight"),
        replaced_weights(model, {"2.weight": ones}),
    ):
        pass
    with (
        pytest.raises(ValueError, match="of shape"),
        replaced_weights(model, {"1.weight": ones, "0.weight": ones[:2]}),
    ):
        pass
    assert model[1].weight is model[0].weight


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("kind", ["clip", "question", "statement", "retrieval", "caption"])
def test_encoders_are_verified_and_measured_in_integers(fresh_run, kind):
    if not multiplies_exactly():
        pytest.skip("this CPU has no VNNI: ONNX Runtime's products of bytes saturate")
    run = fresh_run(kind)
    for flavour, precision in FORMS:
        call("onnx", run, "--no-check", "--flavour", flavour, "--precision", precision)
    options = ("--questions", "6", "--max-new-tokens", "3", "--device", "cpu")
    CliRunner().invoke(cli, ["verify", str(run), *options], catch_exceptions=False)
    links = json.loads((run / "reports" / "verify.json").read_text())["links"]
    names = [link["name"] for link in links]
    for link in links:
        assert not link["answers"]["different"], link
        assert not any(place["different"] for place in link["kept"]), link
        assert link["max_logit_difference"] <= link["bound"], link
        # Random weights attend to all tokens alike, so every choice of tokens may be a tie.
        assert link["ok"] or len(link["tied"]) == link["questions"], link
    assert "slim int4 torch = ONNX Runtime (onnx-int4)" in names
    assert "dense int8 torch = OpenVINO (onnx-dense-standard-int8)" in names
    if computes_bfloat16():
        rough = "OpenVINO, computed in bfloat16 (onnx-dense-standard-int8)"
        assert f"dense int8 torch = {rough}" in names
    more = ("--limit", "8", "--gallery", "4", "--max-new-tokens", "3", "--precision", "int4")
    report = json.loads(call("eval", run, *more, "--json").stdout)
    assert report["artifact"]["precision"] == "int4"


def test_graphics_processors_are_refused(gqa, tmp_path):
    _, checkpoint = gqa
    manifest = export_artifact(
        checkpoint, tmp_path / "q", Origin("tiny"), Target("onnxruntime", "int8")
    )
    with pytest.raises(CompExportError, match="int8, which is for CPUs: use --provider cpu"):
        backend.OnnxRuntime.of(manifest, tmp_path / "q", "cuda", None)
    with pytest.raises(CompExportError, match="--backend tensorrt with --precision int8"):
        ArtifactVariant.choose("tensorrt", precision="int8")


def test_a_cpu_with_saturating_integer_products_is_refused(gqa, tmp_path, monkeypatch):
    _, checkpoint = gqa
    fused, standard = (
        export_artifact(checkpoint, tmp_path / f, Origin("tiny"), Target(f, "int8"))
        for f in ("onnxruntime", "standard")
    )
    monkeypatch.setattr(backend, "multiplies_exactly", lambda: False)
    with pytest.raises(CompExportError, match=r"no VNNI.*--backend openvino"):
        backend.OnnxRuntime.of(fused, tmp_path, "cpu", None)
    backend.OnnxRuntime.of(standard, tmp_path, "cpu", None)


def test_the_cpu_check_uses_the_largest_bytes():
    path = Path(backend.__file__).with_name(GRAPH)
    assert path.read_bytes() == largest_bytes()
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (graph,) = [node for node in ir.load(path).graph if node.op_type == "MatMulIntegerToFloat"]
    assert graph.inputs[1].const_value.numpy().min() == 127
    (sums,) = session.run(None, {"x": np.ones((1, 64), np.float32)})
    assert multiplies_exactly() == bool(np.allclose(sums, 64 * 127, rtol=1e-2))
