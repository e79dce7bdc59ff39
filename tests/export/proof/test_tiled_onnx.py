"""Graphs of families with tiles against transformers and against the slim and masked torch models."""

import numpy as np
import pytest
import torch
from PIL import Image

from comp.adapter import Forwarding
from comp.data.example import Example
from comp.families.loading import load_adapter
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.proof.llava_onnx import OnnxRunner
from export.proof.llava_torch import TorchRunner
from export.proof.masked_torch import masks_of
from tests.export.tiny import IMAGE_TOKEN, make_plan
from tests.export.tiny_tiled import EDGE, save_tiled, tiled_logits, tiny_tiled

BOUND = 1e-3


def prompts(image_tokens: int):
    """Pixels ``[T, 3, S, S]`` and ids ``[1, N]``: no tile, one, and seven in three groups between words."""
    rng = np.random.default_rng(5)
    words = iter(rng.integers(5, 50, size=100).tolist())
    for groups in ((), (1,), (1, 4, 2)):
        ids = [1, next(words)]
        for tiles in groups:
            for _ in range(tiles):
                ids += [next(words), *[IMAGE_TOKEN] * image_tokens]
        ids += [next(words), next(words)]
        pixels = rng.normal(size=(sum(groups), 3, EDGE, EDGE)).astype(np.float32)
        yield pixels, np.array([ids], dtype=np.int64)


@pytest.mark.parametrize(
    ("family", "flavour", "changes"),
    [
        ("smolvlm", "onnxruntime", {}),
        ("smolvlm", "standard", {"scale_factor": 1, "text_head_dim": 16}),
        ("internvl", "onnxruntime", {"text_model_type": "qwen3", "text_head_dim": 16}),
        ("internvl", "standard", {"text_model_type": "qwen2", "vision_attention_bias": False}),
        ("idefics3", "standard", {}),
        ("idefics3", "onnxruntime", {"scale_factor": 4, "text_tie_word_embeddings": True}),
    ],
)
def test_dense_equals_transformers(family, flavour, changes, tmp_path):
    if changes.get("text_tie_word_embeddings"):
        changes = changes | {"tie_word_embeddings": True}
    model = tiny_tiled(family, seed=3, **changes)
    checkpoint = save_tiled(model, tmp_path / "model")
    export_artifact(checkpoint, tmp_path / "onnx", Origin("tiny"), Target(flavour, "float32"), None)
    result = OnnxRunner(tmp_path / "onnx", threads=1)
    for pixels, ids in prompts(result.artifact.manifest.vision.image_tokens):
        logits, _, state = result.prefill(pixels, ids)
        for _ in range(3):
            expected = tiled_logits(model, torch.tensor(pixels), torch.tensor(ids)).numpy()
            assert np.abs(logits[0] - expected).max() <= BOUND
            expected[IMAGE_TOKEN] = -np.inf
            token = int(expected.argmax())
            ids = np.append(ids, [[token]], axis=1)
            logits, state = result.step(np.array([token]), state)


@pytest.mark.parametrize(
    ("family", "flavour"),
    [("smolvlm", "onnxruntime"), ("idefics3", "standard"), ("internvl", "onnxruntime")],
)
def test_compressed_equals_masked_and_slim_torch(family, flavour, tmp_path):
    model = tiny_tiled(family, seed=6)
    checkpoint = save_tiled(model, tmp_path / "model")
    plan = make_plan(model.config, vision=True, seed=2)
    dense = load_adapter(checkpoint)
    slim = dense.cut(plan)
    target = Target(flavour, "float32")
    export_artifact(checkpoint, tmp_path / "onnx", Origin.of_plan(plan), target, plan)
    result = OnnxRunner(tmp_path / "onnx", threads=1)
    masked = TorchRunner(dense.model, (2,), plan.drops, masks_of(dense, plan), None)
    cut = TorchRunner(slim.model, (2,), plan.drops, None, None)
    for pixels, ids in list(prompts(4))[1:]:
        logits, kept, _ = result.prefill(pixels, ids)
        for torch_model in (masked, cut):
            expected = torch_model.prefill(pixels, ids)
            assert [each[0].tolist() for each in kept] == [each.tolist() for each in expected.kept]
            assert np.abs(logits[0] - expected.logits).max() <= BOUND


def test_training_reads_pictures_of_different_sizes_together(tmp_path):
    adapter = load_adapter(save_tiled(tiny_tiled(), tmp_path / "model"))
    sizes = ((30, 20), (84, 84), (28, 28))
    examples = [
        Example(Image.new("RGB", size, color), "what is this", "a cat", "question")
        for size, color in zip(sizes, ("red", "green", "blue"), strict=True)
    ]
    together = adapter.collate(examples)
    alone = [adapter.collate([each]) for each in examples]
    assert [len(each.pixel_values) for each in alone] == [7, 10, 10]
    assert len(together.pixel_values) == sum(len(each.pixel_values) for each in alone)
    with torch.no_grad():
        losses = [float(adapter.score(each, Forwarding()).loss) for each in alone]
        loss = float(adapter.score(together, Forwarding()).loss)
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
