"""CLIP's graphs against the torch reference: dense, cut, and with tokens dropped in every block."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.families.clip.forward import embed_images, embed_texts
from comp.families.clip.slim import clip_options
from comp.families.encoder.forward import EncoderOptions
from comp.masks import Masks
from export.configs.clip import clip_of
from export.families.clip.graphs import TEXT_GRAPH, VISION_GRAPH, build_clip_graphs
from export.graph.builder import Target
from export.weights.checkpoint import CheckpointWeights
from tests.comp.small_clip import random_clip, random_plan
from tests.export.shapes import read_clip

TOKENS = 17
BOUND = {"float32": 2e-5, "float16": 2e-2}
TARGETS = [
    Target("onnxruntime"),
    Target("standard"),
    Target("onnxruntime", "float16"),
    Target("standard", "float16"),
]


@pytest.fixture(scope="module")
def adapter():
    return random_clip(3, image_size=56, positions=20, act="gelu")


def plan_of(ratio, seed=0):
    return random_plan(seed, ratio, ratio, image_tokens=TOKENS, text_tokens=9)


class Graphs:
    """Both graphs of a checkpoint in ONNX Runtime."""

    def __init__(self, checkpoint, directory, target):
        directory.mkdir()
        weights = CheckpointWeights(checkpoint, naming=str)
        build_clip_graphs(read_clip(checkpoint), weights, target, directory)
        self.paths = [directory / VISION_GRAPH, directory / TEXT_GRAPH]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.vision, self.text = (ort.InferenceSession(str(p), options) for p in self.paths)

    @staticmethod
    def run(session, feed):
        names = [output.name for output in session.get_outputs()]
        result = dict(zip(names, session.run(names, feed), strict=True))
        kept = {int(n[5:]): v for n, v in result.items() if n.startswith("kept.")}
        (embeds,) = (v for n, v in result.items() if n.endswith("_embeds"))
        return embeds, kept


def inputs(seed, images=3, texts=4, length=9):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, 56, 56, generator=generator)
    ids = torch.randint(10, 200, (texts, length), generator=generator)
    return pixels, ids


def reference(adapter, pixels, ids, drops):
    ids = ids.clone()
    ids[:, -1] = adapter.model.config.text_config.eos_token_id
    with torch.no_grad():
        images = embed_images(adapter.model, pixels, clip_options(drops, "vision"))
        texts = embed_texts(
            adapter.model, ids, torch.ones_like(ids), clip_options(drops, "language")
        )
    return ids, images, texts


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.flavour}-{t.precision}")
@pytest.mark.parametrize("ratio", [None, 1.0, 0.6, 0.2])
def test_graphs_equal_the_reference(adapter, tmp_path, target, ratio):
    """Any number of images and texts, any length; kept places are those of torch."""
    plan = None if ratio is None else plan_of(ratio)
    model = adapter if plan is None else adapter.cut(plan)
    model.save(tmp_path / "model")
    result = Graphs(tmp_path / "model", tmp_path / "onnx", target)
    drops = () if plan is None else plan.drops
    for seed, (images, texts, length) in enumerate(((3, 4, 9), (1, 1, 3), (2, 5, 20))):
        pixels, ids = inputs(seed, images, texts, length)
        ids, seen, read = reference(model, pixels, ids, drops)
        embeds, kept = result.run(result.vision, {"pixel_values": pixels.numpy()})
        assert_same(embeds, kept, seen, target)
        embeds, kept = result.run(result.text, {"input_ids": ids.numpy()})
        assert_same(embeds, kept, read, target)


def assert_same(embeds, kept, expected, target):
    places = {layer: tokens.index.numpy() for layer, tokens in expected.encoded.kept.items()}
    assert {layer: p.shape for layer, p in kept.items()} == {n: p.shape for n, p in places.items()}
    assert np.allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-3)
    if target.precision == "float32":
        for layer, place in places.items():
            assert np.array_equal(kept[layer], place)
    elif any(not np.array_equal(kept[layer], place) for layer, place in places.items()):
        return  # in half precision close scores may change places: other tokens, other embeddings
    assert np.abs(embeds - expected.embeds.numpy()).max() <= BOUND[target.precision]


def test_masked_torch_equals_the_graphs(adapter, tmp_path):
    """The whole chain at once: masks in the dense model against the cut graph."""
    plan = plan_of(0.5, seed=5)
    slim = adapter.cut(plan)
    slim.save(tmp_path / "model")
    result = Graphs(tmp_path / "model", tmp_path / "onnx", Target())
    pixels, ids = inputs(7)
    ids[:, -1] = adapter.model.config.text_config.eos_token_id
    forwarding = Forwarding(Masks.from_plan(plan.blocks))
    rules = {part: clip_options(plan.drops, part).rules for part in ("vision", "language")}
    with torch.no_grad():
        seen = embed_images(
            adapter.model, pixels, EncoderOptions(forwarding.masks, rules["vision"])
        )
        read = embed_texts(
            adapter.model,
            ids,
            torch.ones_like(ids),
            EncoderOptions(forwarding.masks, rules["language"]),
        )
    for session, feed, expected in (
        (result.vision, {"pixel_values": pixels.numpy()}, seen),
        (result.text, {"input_ids": ids.numpy()}, read),
    ):
        embeds, kept = result.run(session, feed)
        assert_same(embeds, kept, expected, Target())


def test_dense_graphs_equal_clip(adapter, tmp_path):
    adapter.save(tmp_path / "model")
    result = Graphs(tmp_path / "model", tmp_path / "onnx", Target())
    pixels, ids = inputs(1)
    ids[:, -1] = adapter.model.config.text_config.eos_token_id
    with torch.no_grad():
        output = adapter.model(input_ids=ids, pixel_values=pixels)
    seen, _ = result.run(result.vision, {"pixel_values": pixels.numpy()})
    read, _ = result.run(result.text, {"input_ids": ids.numpy()})
    assert np.abs(seen - output.image_embeds.numpy()).max() < BOUND["float32"]
    assert np.abs(read - output.text_embeds.numpy()).max() < BOUND["float32"]


def test_the_standard_flavour_is_standard(adapter, tmp_path):
    adapter.cut(plan_of(0.5)).save(tmp_path / "model")
    result = Graphs(tmp_path / "model", tmp_path / "onnx", Target("standard"))
    for path in result.paths:
        onnx.checker.check_model(str(path), full_check=True)
        loaded = onnx.load(path, load_external_data=False)
        assert {node.domain for node in loaded.graph.node} == {""}


def test_shapes_from_a_plan_equal_those_of_its_checkpoint(adapter, tmp_path):
    plan = plan_of(0.5, seed=2)
    adapter.save(tmp_path / "dense")
    adapter.cut(plan).save(tmp_path / "slim")
    assert read_clip(tmp_path / "dense").pruned(plan) == read_clip(tmp_path / "slim")
    with pytest.raises(CompExportError, match="compressed already"):
        read_clip(tmp_path / "slim").pruned(plan)
    with pytest.raises(CompExportError, match="a plan of a llava, and the model is a clip"):
        read_clip(tmp_path / "dense").pruned(plan.model_copy(update={"family": "llava"}))
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    with pytest.raises(CompExportError, match="hidden_act is 'mish'"):
        clip_of(config | {"text_config": {"hidden_act": "mish"}}, "config.json")
    with pytest.raises(CompExportError, match="model_type is 'siglip'"):
        clip_of({"model_type": "siglip"}, "config.json")
