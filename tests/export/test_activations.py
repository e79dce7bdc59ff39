"""Models that overflow in float16: measured, kept in float32 where possible, otherwise reported."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.data.embedded import embedded_examples
from comp.errors import CompExportError
from comp.runs import RUN_VERSION
from export.activations import FEW, Half, largest_numbers
from export.artifact.load import load_artifact
from export.artifact.manifest import Activations
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.graph.float32_layers import CAREFUL, NONE, Wide, overflow_warning, wide_of
from export.proof.llava_onnx import OnnxRunner
from export.proof.llava_onnx_in_place import InPlaceRunner
from export.tensorrt.build.directory import build_engines, choose_limits
from export.tensorrt.build.engine import BuildOptions
from export.tensorrt.library import find_tensorrt
from export.tensorrt.manifest import load_engines
from export.weights.slim import write_slim_checkpoint
from serve.commands.onnx import command as onnx_command
from tests.comp import small_clip
from tests.export.tiny import make_plan, prompt, save_checkpoint, tiny_config, tiny_model

LAYER = "model.language_model.layers"
LOUD = {  # a tensor, its factor, and the layers that are then in float32
    f"{LAYER}.1.mlp.down_proj": (3e5, Wide(1, ffn=frozenset({1}))),
    f"{LAYER}.0.mlp.up_proj": (1e6, Wide(0, ffn=frozenset({0}))),
    f"{LAYER}.3.mlp.gate_proj": (1e6, Wide(3, ffn=frozenset({3}))),
    f"{LAYER}.2.self_attn.o_proj": (3e5, Wide(2, frozenset({2}))),
    "lm_head": (3e5, Wide(head=True)),
}
EXAMPLES = embedded_examples("question", "train", FEW)


def loud_checkpoint(directory, name, factor):
    model = tiny_model(tiny_config(kv_heads=2), seed=6)
    with torch.no_grad():
        model.get_submodule(name).weight.mul_(factor)
    return save_checkpoint(model, directory)


def answered(runner):
    """Logits of a prompt and of two steps."""
    pixels, ids = prompt(7, 1, seed=3)
    logits, _, state = runner.prefill(pixels, ids)
    actual = [logits]
    for token in (11, 23):
        logits, state = runner.step(np.array([token]), state)
        actual.append(logits)
    return np.stack(actual)


@pytest.mark.parametrize("name", LOUD)
def test_overflowing_operators_run_in_float32(name, tmp_path):
    factor, expected = LOUD[name]
    checkpoint = loud_checkpoint(tmp_path / "dense", name, factor)
    plan = make_plan(tiny_config(kv_heads=2))
    half = Half.of(checkpoint, Target("onnxruntime", "float16"), EXAMPLES)
    assert half.activations.largest > CAREFUL
    assert half.activations.beyond == ()
    actual = half.target.wide
    assert (actual.residual_from, actual.outputs, actual.ffn, actual.head) == (
        expected.residual_from,
        expected.outputs,
        expected.ffn,
        expected.head,
    )
    export_artifact(checkpoint, tmp_path / "whole", Origin("t"), Target(), plan)
    right = answered(OnnxRunner(tmp_path / "whole", threads=1))
    plain = tmp_path / "plain"
    export_artifact(checkpoint, plain, Origin("t"), Target("onnxruntime", "float16"), plan)
    assert not np.isfinite(answered(OnnxRunner(plain, threads=1))).all()
    for flavour in ("onnxruntime", "standard"):
        out = tmp_path / flavour
        target = Target(flavour, "float16", wide=half.target.wide)
        export_artifact(checkpoint, out, Origin("t"), target, plan, activations=half.activations)
        assert load_artifact(out).manifest.activations == half.activations
        runners = [OnnxRunner(out, threads=1)]
        if flavour == "standard":
            runners.append(InPlaceRunner(load_artifact(out), 64))
        for runner in runners:
            difference = np.abs(answered(runner) - right).max() / np.abs(right).max()
            assert difference < 1e-2, (flavour, type(runner))
    words = half.warnings("dense")
    assert "float16 ends at 65,504" in words[0]
    assert all(each in words[1] for each in actual.names)
    assert len(words) == 2


@pytest.mark.slow
def test_tensorrt_builds_mixed_precision_with_fused_attention(tmp_path):
    """Compile without a GPU: layers in float32 do not change the fusion of attention."""
    find = pytest.importorskip("tensorrt_rtx") and find_tensorrt
    config = tiny_config(kv_heads=2, text_hidden_size=64, text_head_dim=16)
    model = tiny_model(config, seed=6)
    loud = (f"{LAYER}.1.mlp.down_proj", f"{LAYER}.2.self_attn.o_proj", "lm_head")
    with torch.no_grad():
        for name in loud:
            model.get_submodule(name).weight.mul_(3e5)
    checkpoint = save_checkpoint(model, tmp_path / "dense")
    half = Half.of(checkpoint, Target("standard", "float16"), EXAMPLES)
    source = tmp_path / "onnx-standard-float16"
    export_artifact(checkpoint, source, Origin("t"), half.target, make_plan(config))
    limits = choose_limits(source, max_prompt=32, max_new_tokens=16)
    options = BuildOptions(("8.9",))
    built = build_engines(find("tensorrt_rtx"), source, tmp_path / "out", limits, options)
    blocks = built.engines["decoder"].blocks
    assert [(block.attention, block.caches_in_place) for block in blocks] == [("fused", 2)] * 4
    assert load_engines(tmp_path / "out").manifest == built


def test_a_sound_model_is_unchanged_without_a_message(gqa):
    target = Target("standard", "float16")
    half = Half.of(gqa[1], target, EXAMPLES)
    assert half.target == target
    assert half.target.wide == NONE
    assert 0 < half.activations.largest < CAREFUL
    assert half.warnings("dense") == []
    assert half.activations.examples == FEW


@pytest.mark.parametrize(
    "name", [f"{LAYER}.1.self_attn.q_proj", "model.multi_modal_projector.linear_2"]
)
def test_unfixable_overflow_gives_a_warning(name, tmp_path):
    checkpoint = loud_checkpoint(tmp_path / "dense", name, 1e6)
    half = Half.of(checkpoint, Target("onnxruntime", "float16"), EXAMPLES)
    assert name in half.activations.beyond
    assert overflow_warning("tensorrt", half.activations).startswith("WARNING: tensorrt: ")
    assert any(
        "WARNING" in line and "--precision float32" in line and name in line
        for line in half.warnings("dense")
    )


def test_encoders_are_measured(tmp_path):
    adapter = small_clip.random_clip(2)
    loud = adapter.model.vision_model.encoder.layers[1].mlp.fc2
    with torch.no_grad():
        loud.weight.mul_(1e6)
    adapter.save(tmp_path / "dense")
    pairs = embedded_examples("retrieval", "train", FEW)
    half = Half.of(tmp_path / "dense", Target("onnxruntime", "float16"), pairs)
    assert half.target.wide == NONE
    assert "vision_model.encoder.layers.1.mlp.fc2" in half.activations.beyond


def test_large_models_are_not_measured_and_the_user_is_informed(gqa, monkeypatch):
    monkeypatch.setattr("export.activations.is_streamed", lambda _: True)
    half = Half.of(gqa[1], Target("onnxruntime", "float16"), EXAMPLES)
    assert half.activations is None
    assert "not measured" in half.warnings("dense")[0]


def test_a_checkpoint_that_is_not_finite_in_float32_is_refused(tmp_path):
    checkpoint = loud_checkpoint(tmp_path / "dense", f"{LAYER}.1.mlp.down_proj", float("nan"))
    with pytest.raises(CompExportError, match=r"layers\.1\.mlp\.down_proj.*not finite"):
        largest_numbers(checkpoint, EXAMPLES)


NAMES = [
    f"{LAYER}.{block}.{part}"
    for block in range(5)
    for part in (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.o_proj",
        "self_attn.k_proj",
        "mlp.up_proj",
        "mlp.act_fn",
        "mlp.down_proj",
    )
] + ["model.language_model.norm", "lm_head", "model.vision_tower.post_layernorm"]


@settings(deadline=None)
@given(loud=st.sets(st.sampled_from(NAMES)))
def test_every_overflowing_operator_is_in_float32_or_named(loud):
    wide, beyond = wide_of({name: CAREFUL * (1.1 if name in loud else 0.9) for name in NAMES})
    for name in loud:
        words = name.split(".")
        block = int(words[3]) if words[2:3] == ["layers"] else None
        held = {
            "o_proj": block in wide.outputs,
            "lm_head": wide.head,
            "norm": wide.residual(4),
            "input_layernorm": block is not None and wide.residual(max(block - 1, 0)),
            "post_attention_layernorm": block is not None and wide.residual(block),
        }.get(words[-1], block in wide.ffn)
        assert held or name in beyond
    assert (wide == NONE) == (not loud - set(beyond))
    for block in wide.outputs | wide.ffn:
        assert wide.residual(block)  # their sum may be too large for float16


def test_the_command_measures_reports_and_records_overflow(tmp_path):
    """Export float16 of both models of a run in one command, as a user does."""
    dense = loud_checkpoint(tmp_path / "dense", f"{LAYER}.1.mlp.down_proj", 3e5)
    config = tiny_config(kv_heads=2)
    plan = make_plan(config, model=str(dense)).model_copy(update={"task": "question"})
    run = tmp_path / "run"
    run.mkdir()
    plan.save(run / "plan.json")
    write_slim_checkpoint(dense, plan, run / "checkpoint")
    record = {"version": RUN_VERSION, "model": str(dense), "model_path": str(dense)}
    (run / "run.json").write_text(json.dumps(record))
    words = [str(run), "--precision", "float16", "--json"]
    result = CliRunner().invoke(onnx_command, words, catch_exceptions=False)
    assert result.exit_code == 0
    artifacts = json.loads(result.stdout)["artifacts"]
    for which, name in (("compressed", "onnx-float16"), ("dense", "onnx-dense-float16")):
        actual = Activations.model_validate(artifacts[which]["activations"])
        assert actual == load_artifact(run / name).manifest.activations
        assert "layers.1.mlp" in actual.float32
        assert f"{which}: in float32 therefore: residual from 1" in result.stderr
        assert np.isfinite(answered(OnnxRunner(run / name, threads=1))).all()
