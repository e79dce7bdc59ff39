"""Output layers equal transformers' for all flags and files, on every path of the product."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    LlavaForConditionalGeneration,
)

from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.llava_tensors import check_llava, tensors_of
from comp.checkpoints.tensor_names import canonical_name
from comp.checkpoints.tying import BLIP_HEAD, BLIP_WORDS, EMBEDDING, LM_HEAD
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from export.graph.builder import Target
from export.weights.checkpoint import CheckpointWeights
from export.weights.slim import slim_weights, write_slim_checkpoint
from tests.comp.small_blip import random_blip
from tests.comp.small_blip import random_plan as blip_plan
from tests.export.small_blip import Graphs
from tests.export.tiny import make_plan, save_checkpoint, tiny_config, tiny_model

FLAGS = ((False, False), (True, False), (False, True))
FILES = ("none", "equal", "different", "alone")
PLAN = make_plan(tiny_config())


def edited(directory, flags, change):
    """Set the flags of the whole and of its text model, and change the tensors of the file."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    whole, text = flags
    config["tie_word_embeddings"] = whole
    config["text_config"]["tie_word_embeddings"] = text
    path.write_text(json.dumps(config))
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def holding(kind, source, target):
    """Return a change of a state dict: which of two possibly tied tensors are stored."""

    def change(state):
        names = {canonical_name(name): name for name in state} | {name: name for name in state}
        first = state[names[source]].clone()
        for name in {names.get(target), target} - {None}:
            state.pop(name, None)
        if kind == "alone":
            del state[names[source]]
        if kind != "none":
            other = torch.randn(first.shape, generator=torch.Generator().manual_seed(3))
            state[target] = other if kind == "different" else first.clone()

    return change


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_checkpoint(tiny_model(tiny_config()), tmp_path_factory.mktemp("llava") / "whole")


def copied(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def head_of(directory):
    return AutoModelForImageTextToText.from_pretrained(directory).lm_head.weight


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", FILES)
def test_the_head_of_a_llava_equals_transformers(llava, tmp_path, flags, kind):
    dense = copied(llava, tmp_path / "dense")
    edited(dense, flags, holding(kind, EMBEDDING, LM_HEAD))
    model, info = LlavaForConditionalGeneration.from_pretrained(dense, output_loading_info=True)
    config = json.loads((dense / "config.json").read_text())
    if info["missing_keys"]:  # neither flag, and not both
        assert flags == (False, False)
        assert kind in ("none", "alone")
        for read in (
            lambda: load_adapter(dense),
            lambda: check_llava(dense, config),
            lambda: slim_weights(dense, PLAN),
            lambda: write_slim_checkpoint(dense, PLAN, tmp_path / "slim"),
        ):
            with pytest.raises(CompExportError, match="has no tensor"):
                read()
        with pytest.raises(CompExportError, match="has no tensor"):
            CheckpointWeights(dense).read(LM_HEAD if kind == "none" else EMBEDDING)
        assert not (tmp_path / "slim").exists()
        return
    head, words = model.lm_head.weight, model.model.language_model.embed_tokens.weight
    assert torch.equal(head, words) == (kind != "different" and (kind != "none" or any(flags)))
    weights = CheckpointWeights(dense)
    np.testing.assert_array_equal(weights.read(LM_HEAD), head.detach())
    np.testing.assert_array_equal(weights.read(EMBEDDING), words.detach())
    adapter = load_adapter(dense)
    assert torch.equal(adapter.model.lm_head.weight, head)
    ways = {
        "prune": adapter.cut(PLAN).save,
        "cut": lambda out: write_slim_checkpoint(dense, PLAN, out),
    }
    if kind in ("none", "different"):
        streamed = load_adapter(dense, streamed=True)
        assert torch.equal(streamed.model.lm_head.weight, head)
        ways["stream"] = streamed.cut(PLAN).save
    for name, write in ways.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        assert torch.equal(head_of(tmp_path / name), head), name
        np.testing.assert_array_equal(
            CheckpointWeights(tmp_path / name).read(LM_HEAD), head.detach()
        )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_heads": 2, "text_attention_bias": True, "text_mlp_bias": True},
        {"vision_feature_layer": [-2, 1], "multimodal_projector_bias": False},
        {"text_head_dim": 16, "vision_num_channels": 1},
    ],
)
def test_the_tensors_of_a_llava_equal_transformers(changes):
    config = tiny_config(**changes)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shape = ModelShape.from_config(config.to_dict())
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    result = dict(tensors_of(shape))
    assert result.items() <= expected.items()
    unread = {name for name in expected if name not in result}
    used = shape.vision_used_layers
    assert all(
        "post_layernorm" in name or f"encoder.layers.{used}" in name or "position_ids" in name
        for name in unread
    )


BLIPS = {"question": BlipForQuestionAnswering, "caption": BlipForConditionalGeneration}
BLIP_FLAGS = ((True, True), (True, False), (False, True), (False, False))


@pytest.fixture(scope="module", params=sorted(BLIPS))
def blip(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param) / "whole"
    random_blip(request.param, seed=1).save(directory)
    return request.param, directory


@pytest.mark.parametrize("flags", BLIP_FLAGS)
@pytest.mark.parametrize("kind", ["none", "different"])
def test_the_output_layer_of_a_blip_equals_transformers(blip, tmp_path, flags, kind):
    task, whole = blip
    dense = copied(whole, tmp_path / "dense")
    edited(dense, flags, holding(kind, BLIP_WORDS, f"{BLIP_HEAD}.decoder.weight"))
    edited(dense, flags, holding(kind, f"{BLIP_HEAD}.bias", f"{BLIP_HEAD}.decoder.bias"))
    model, info = BLIPS[task].from_pretrained(dense, output_loading_info=True)
    if info["missing_keys"]:
        assert flags == (False, False)
        assert kind == "none"
        with pytest.raises(CompExportError, match=r"lacks text_decoder\.cls\.predictions\.decoder"):
            load_adapter(dense)
        with pytest.raises(CompExportError, match=r"has no tensor text_decoder\.cls\.predictions"):
            Graphs(dense, tmp_path / "onnx", Target())
        return
    head = model.text_decoder.cls.predictions.decoder
    adapter = load_adapter(dense)
    slim = adapter.cut(blip_plan(adapter, seen=1.0, read=1.0))
    slim.save(tmp_path / "slim")
    for directory, loaded in (
        (dense, adapter),
        (tmp_path / "slim", load_adapter(tmp_path / "slim")),
    ):
        result = loaded.model.text_decoder.cls.predictions.decoder
        assert torch.equal(result.weight, head.weight)
        assert torch.equal(result.bias, head.bias)
        graphs = Graphs(directory, tmp_path / f"onnx-{directory.name}", Target())
        ids = np.array([[1, 7, 9]])
        looked_at = 5 if task == "question" else graphs.shape.image_tokens
        memory = torch.randn(1, looked_at, model.config.text_config.hidden_size)
        with torch.no_grad():
            expected = loaded.model.text_decoder(
                input_ids=torch.from_numpy(ids), encoder_hidden_states=memory
            ).logits[:, -1]
        result = graphs.answerer(memory.numpy()).step(ids)
        np.testing.assert_allclose(result, expected.numpy(), atol=2e-4)
