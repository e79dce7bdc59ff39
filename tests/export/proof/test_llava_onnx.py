"""The exported graphs against torch: dense against transformers, compressed against a reference."""

import numpy as np
import onnx
import pytest
import torch

from export.exporter import Origin, export_artifact
from export.families.llava.decoder import GRAPHS
from export.graph.builder import Target
from export.proof.llava_onnx import OnnxRunner
from export.weights.slim import write_slim_checkpoint
from tests.export.reference import MaskedReference, features_of, generated
from tests.export.tiny import (
    IMAGE_TOKEN,
    make_plan,
    prompt,
    save_checkpoint,
    tiny_config,
    tiny_model,
)

BOUND = 1e-3
FLAVOURS = ("onnxruntime", "standard")
FP16_BOUND = 0.15  # logits of these models are of the order of 3


def runner(directory, checkpoint, flavour="onnxruntime", precision="float32", plan=None):
    origin = Origin.of_plan(plan) if plan else Origin("tiny")
    export_artifact(checkpoint, directory, origin, Target(flavour, precision), plan)
    return OnnxRunner(directory, threads=1)


@torch.no_grad()
def dense_logits(model, pixels, ids):
    images = {} if len(pixels) == 0 else {"pixel_values": torch.tensor(pixels)}
    return model(input_ids=torch.tensor(ids), **images).logits[:, -1].numpy()


def next_token(logits):
    """Choose greedily, but never the image token: transformers would need a picture."""
    without = logits.copy()
    without[:, IMAGE_TOKEN] = -np.inf
    return without.argmax(-1)


def assert_dense_parity(
    model, result: OnnxRunner, bound=BOUND, cases=((5, 1, 1), (11, 2, 3), (3, 1, 3))
):
    for texts, images, batch in cases:
        pixels, ids = prompt(
            texts,
            images,
            seed=texts,
            batch=batch,
            tokens=result.artifact.manifest.vision.image_tokens,
        )
        expected = dense_logits(model, pixels, ids)
        logits, kept, state = result.prefill(pixels, ids)
        assert kept == []
        assert np.abs(logits - expected).max() <= bound
        for _ in range(3):
            token = next_token(expected)
            assert bound > BOUND or (next_token(logits) == token).all()
            ids = np.concatenate([ids, token[:, None]], 1)
            logits, state = result.step(token, state)
            expected = dense_logits(model, pixels, ids)
            assert np.abs(logits - expected).max() <= bound


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["gqa", "mha"])
def test_dense_equals_transformers(name, flavour, request, tmp_path):
    model, checkpoint = request.getfixturevalue(name)
    assert_dense_parity(model, runner(tmp_path / "onnx", checkpoint, flavour))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_dense_without_images(flavour, gqa, tmp_path):
    model, checkpoint = gqa
    result = runner(tmp_path / "onnx", checkpoint, flavour)
    pixels, ids = prompt(6, images=0)
    assert np.abs(result.prefill(pixels, ids)[0] - dense_logits(model, pixels, ids)).max() <= BOUND


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "changes",
    [
        {"vision_feature_layer": -1},
        {"vision_feature_layer": [-2, -1]},
        {"vision_feature_layer": [0, 1]},
        {"vision_feature_layer": [1, -2], "vision_feature_select_strategy": "full"},
        {"projector_hidden_act": "relu", "multimodal_projector_bias": False},
        {"vision_hidden_act": "gelu", "projector_hidden_act": "gelu_pytorch_tanh"},
        {"text_attention_bias": True, "text_mlp_bias": True},
        {"text_head_dim": 16},
        {"text_rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
        {
            "text_rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        {
            "text_rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        {"text_rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}},
        {"tie_word_embeddings": True, "text_tie_word_embeddings": True},
        {"decoder": "mistral", "text_sliding_window": 64},
        {"decoder": "qwen2", "tower": "siglip"},
        {"decoder": "qwen3", "text_head_dim": 24, "text_num_attention_heads": 6},
        {"tower": "siglip", "vision_feature_layer": [-1, 0], "vision_vision_use_head": False},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_config_variants_equal_transformers(flavour, changes, tmp_path):
    model = tiny_model(tiny_config(kv_heads=2, layers=2, **dict(changes)), seed=2)
    checkpoint = save_checkpoint(model, tmp_path / "model")
    assert_dense_parity(
        model, runner(tmp_path / "onnx", checkpoint, flavour), cases=((5, 1, 1), (4, 2, 2))
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["gqa", "mha", "qwen"])
def test_compressed_equals_masked_reference(name, flavour, request, tmp_path):
    model, checkpoint = request.getfixturevalue(name)
    plan = make_plan(model.config, seed=3)
    result = runner(tmp_path / "onnx", checkpoint, flavour, plan=plan)
    reference = MaskedReference(model, plan)
    for texts, images, batch in ((5, 1, 1), (13, 2, 3), (1, 1, 2), (7, 3, 1)):
        pixels, ids = prompt(texts, images, seed=texts, batch=batch)
        logits, kept, state = result.prefill(pixels, ids)
        rows = [MaskedReference(model, plan) for _ in range(batch)]
        expected = []
        for row, one in enumerate(rows):
            mine = torch.tensor(pixels[row * images : (row + 1) * images])
            row_logits, row_kept = one.prefill(mine, torch.tensor(ids[row : row + 1]))
            assert [place[row].tolist() for place in kept] == row_kept
            expected.append(row_logits.numpy())
        assert np.abs(logits - np.stack(expected)).max() <= BOUND
        for _ in range(3):
            token = np.stack(expected).argmax(-1)
            assert (logits.argmax(-1) == token).all()
            logits, state = result.step(token, state)
            expected = [one.step(int(t)).numpy() for one, t in zip(rows, token, strict=True)]
            assert np.abs(logits - np.stack(expected)).max() <= BOUND
    pixels, ids = prompt(9, seed=9)
    assert generated(result, pixels, ids, 8) == reference.generate(
        torch.tensor(pixels), torch.tensor(ids), 8, eos=(2,)
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_slim_checkpoint_exports_the_same_graphs(flavour, gqa, tmp_path):
    model, checkpoint = gqa
    plan = make_plan(model.config, vision=True, seed=4)
    slim = write_slim_checkpoint(checkpoint, plan, tmp_path / "slim")
    directly = runner(tmp_path / "a", checkpoint, flavour, plan=plan)
    through = runner(tmp_path / "b", slim, flavour)
    pixels, ids = prompt(8, 2, seed=1)
    first, second = directly.prefill(pixels, ids), through.prefill(pixels, ids)
    assert np.array_equal(first[0], second[0])
    assert all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    for name in GRAPHS:
        assert (tmp_path / "a" / f"{name}.data").read_bytes() == (
            tmp_path / "b" / f"{name}.data"
        ).read_bytes()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_pruned_tower_equals_masked_tower(flavour, gqa, tmp_path):
    model, checkpoint = gqa
    plan = make_plan(model.config, vision=True, seed=5, drops=())
    result = runner(tmp_path / "onnx", checkpoint, flavour, plan=plan)
    masked = tiny_model(tiny_config(kv_heads=2))
    dim = 8
    with torch.no_grad():
        for block in plan.part("vision"):
            layer = masked.model.vision_tower.encoder.layers[block.index]
            gone = [h for h in range(3) if h not in block.kept_heads]
            for head in gone:
                layer.self_attn.out_proj.weight[:, head * dim : (head + 1) * dim] = 0
            channels = [c for c in range(40) if c not in block.kept_channels]
            layer.mlp.fc2.weight[:, channels] = 0
        pixels, _ = prompt(3, images=2)
        expected = torch.stack(list(masked.get_image_features(torch.tensor(pixels)).pooler_output))
    assert np.abs(features_of(result, pixels) - expected.numpy()).max() <= BOUND


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_float16_is_close_to_float32(flavour, gqa, tmp_path):
    model, checkpoint = gqa
    result = runner(tmp_path / "dense", checkpoint, flavour, "float16")
    assert_dense_parity(model, result, FP16_BOUND)
    plan = make_plan(model.config, seed=3)
    result = runner(tmp_path / "slim", checkpoint, flavour, "float16", plan)
    pixels, ids = prompt(9, seed=2)
    logits, kept, state = result.prefill(pixels, ids)
    expected, expected_kept = MaskedReference(model, plan).prefill(
        torch.tensor(pixels), torch.tensor(ids)
    )
    assert [len(place[0]) for place in kept] == [len(place) for place in expected_kept]
    if [place[0].tolist() for place in kept] == expected_kept:
        assert np.abs(logits[0] - expected.numpy()).max() <= FP16_BOUND
    assert all(value.dtype == np.float16 for value in state.caches.values())


def test_keep_factor_scales_the_keep_ratios(gqa, tmp_path):
    model, checkpoint = gqa
    plan = make_plan(model.config, seed=3)
    result = runner(tmp_path / "onnx", checkpoint, plan=plan)
    pixels, ids = prompt(9, seed=2)
    for factor in (0.25, 0.5, 0.8, 1.0, 1.5, 100.0):
        logits, kept, _ = result.prefill(pixels, ids, keep_factor=factor)
        expected, expected_kept = MaskedReference(model, plan).prefill(
            torch.tensor(pixels), torch.tensor(ids), factor
        )
        assert [place[0].tolist() for place in kept] == expected_kept
        assert np.abs(logits[0] - expected.numpy()).max() <= BOUND


def test_standard_flavour_is_standard(gqa, tmp_path):
    model, checkpoint = gqa
    runner(tmp_path / "onnx", checkpoint, "standard", plan=make_plan(model.config))
    for name in GRAPHS:
        path = tmp_path / "onnx" / name
        onnx.checker.check_model(str(path), full_check=True)
        loaded = onnx.load(str(path), load_external_data=False)
        assert {node.domain for node in loaded.graph.node} == {""}
        assert [opset.domain for opset in loaded.opset_import] == [""]
