"""Checkpoints in every layout, slim checkpoints, manifests, and refusals."""

import json
import math
import shutil
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import comp  # noqa: F401  (registers slim models)
from comp.checkpoints.chat_template import render, user_turn
from comp.checkpoints.image_processor import read_image_processing
from comp.checkpoints.tensor_names import canonical_name
from comp.errors import CompExportError
from export.artifact.load import load_artifact
from export.artifact.manifest import MANIFEST_NAME
from export.configs.chat_template import read_chat_template
from export.configs.special_tokens import read_special_tokens
from export.configs.tokenizer import read_tokenizer
from export.exporter import Origin, artifact_directory, export_artifact
from export.graph.builder import GraphBuilder, Target
from export.weights.checkpoint import CheckpointWeights
from export.weights.slim import write_slim_checkpoint
from tests.export.damage import assert_damage_is_refused
from tests.export.memory_weights import MemoryWeights
from tests.export.shapes import read_llava
from tests.export.tiny import (
    IMAGE_TOKEN,
    make_plan,
    prompt,
    save_checkpoint,
    tiny_config,
    tiny_model,
)


def rewrite(source, target, rename, dtype=None, shards=1):
    """Copy a checkpoint under other tensor names, in ``shards`` files."""
    shutil.copytree(source, target)
    tensors = {
        rename(canonical_name(k)): v for k, v in load_file(source / "model.safetensors").items()
    }
    if dtype is not None:
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    (target / "model.safetensors").unlink()
    if shards == 1:
        save_file(tensors, target / "model.safetensors")
        return target
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, target / file)
        weight_map |= dict.fromkeys(mine, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return target


def hub_name(name):
    for old, new in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(old):
            return new + name[len(old) :]
    raise AssertionError(name)


LAYOUTS = {
    "hub": hub_name,
    "memory": lambda name: name,
    "early-5": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_checkpoint_is_read(layout, shards, gqa, tmp_path):
    model, checkpoint = gqa
    copy = rewrite(checkpoint, tmp_path / "copy", LAYOUTS[layout], shards=shards)
    weights = CheckpointWeights(copy)
    state = model.state_dict()
    assert set(weights.names()) == set(state)
    for name, tensor in state.items():
        assert np.array_equal(weights.read(name), tensor.numpy())
        assert weights.shape(name) == tuple(tensor.shape)
    # Written by transformers in shards, too.
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 2
    assert set(CheckpointWeights(tmp_path / "saved").names()) == set(state)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_sources_are_read(dtype, gqa, tmp_path):
    _, checkpoint = gqa
    copy = rewrite(checkpoint, tmp_path / "copy", hub_name, dtype=dtype)
    name = "model.language_model.norm.weight"
    weights = CheckpointWeights(copy)
    assert weights.dtype(name) == dtype
    expected = CheckpointWeights(checkpoint).read(name).astype(dtype)
    assert np.array_equal(weights.read(name), expected)
    export_artifact(copy, tmp_path / "onnx", Origin("tiny"))
    slim = write_slim_checkpoint(copy, make_plan(tiny_config(kv_heads=2)), tmp_path / "slim")
    assert CheckpointWeights(slim).dtype(name) == dtype


def test_memory_weights_equal_the_checkpoint(gqa):
    model, checkpoint = gqa
    stored, memory = CheckpointWeights(checkpoint), MemoryWeights(model.state_dict())
    for name in stored.names():
        assert np.array_equal(stored.read(name), memory.read(name))
        assert stored.dtype(name) == memory.dtype(name)
    half = MemoryWeights({name: t.bfloat16() for name, t in model.state_dict().items()})
    assert half.dtype("lm_head.weight") == ml_dtypes.bfloat16
    name = "lm_head.weight"
    assert np.array_equal(half.read(name), stored.read(name).astype(ml_dtypes.bfloat16))


def test_tied_head_is_the_embedding(tmp_path):
    model = tiny_model(
        tiny_config(layers=1, tie_word_embeddings=True, text_tie_word_embeddings=True)
    )
    checkpoint = save_checkpoint(model, tmp_path / "tied")
    weights = CheckpointWeights(checkpoint)
    assert "lm_head.weight" not in weights.names()
    assert weights.shape("lm_head.weight") == (60, 32)


def test_slim_checkpoint_loads_in_transformers(gqa, tmp_path):
    """One call loads it, processor included, and it answers as the slim graphs do."""
    from export.proof.llava_onnx import OnnxRunner

    model, checkpoint = gqa
    plan = make_plan(model.config, vision=True, seed=8)
    slim = write_slim_checkpoint(checkpoint, plan, tmp_path / "slim")
    config = json.loads((slim / "config.json").read_text())
    assert config["model_type"] == "comp_llava"
    loaded, info = AutoModelForImageTextToText.from_pretrained(slim, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    AutoProcessor.from_pretrained(slim)
    assert loaded.num_parameters() == sum(
        math.prod(CheckpointWeights(slim).shape(name)) for name in CheckpointWeights(slim).names()
    )
    export_artifact(slim, tmp_path / "onnx", Origin.of_plan(plan))
    result = OnnxRunner(tmp_path / "onnx", threads=1)
    pixels, ids = prompt(7, seed=3)
    with torch.no_grad():
        expected = loaded.eval()(
            input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels), logits_to_keep=1
        ).logits[:, -1]
    assert np.abs(result.prefill(pixels, ids)[0] - expected.numpy()).max() <= 1e-3
    # A save by transformers is read back unchanged.
    loaded.save_pretrained(tmp_path / "again")
    assert read_llava(tmp_path / "again") == read_llava(slim)
    again = CheckpointWeights(tmp_path / "again")
    assert set(again.names()) == set(CheckpointWeights(slim).names())


def test_broken_checkpoints_are_refused(gqa, tmp_path):
    _, checkpoint = gqa

    def changed(name, change):
        copy = tmp_path / name
        shutil.copytree(checkpoint, copy)
        change(copy)
        return copy

    def truncate(copy):
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])

    def configure(**values):
        def change(copy):
            config = json.loads((copy / "config.json").read_text())
            for key, value in values.items():
                part, _, inner = key.partition("__")
                if inner:
                    config[part][inner] = value
                else:
                    config[key] = value
            (copy / "config.json").write_text(json.dumps(config))

        return change

    def drop_tensor(copy):
        tensors = load_file(copy / "model.safetensors")
        del tensors["language_model.model.norm.weight"]
        save_file(tensors, copy / "model.safetensors")

    cases = {
        "truncated": (truncate, "truncated or no safetensors"),
        "missing": (lambda copy: (copy / "model.safetensors").unlink(), "no model.safetensors"),
        "tensor": (drop_tensor, "no tensor model.language_model.norm.weight"),
        "bert": (configure(model_type="bert"), "model_type"),
        "gemma": (configure(text_config__model_type="gemma3_text"), "gemma3_text"),
        "siglip": (
            configure(vision_config__model_type="siglip_vision_model"),
            r"the image tower has no \[CLS\]: write 'full'",
        ),
        "act": (configure(text_config__hidden_act="gelu"), "text_config.hidden_act"),
        "rope": (
            configure(text_config__rope_parameters={"rope_type": "longrope", "factor": 2}),
            "rope_type is 'longrope'",
        ),
        "yarn": (
            configure(text_config__rope_parameters={"rope_type": "yarn", "factor": 2}),
            "rope of type 'yarn' without 'original_max_position_embeddings'",
        ),
        "layer": (configure(vision_feature_layer=9), "vision_feature_layer"),
        "strategy": (configure(vision_feature_select_strategy="cls"), "select_strategy"),
        "quantised": (configure(quantization_config={"bits": 4}), "quantised"),
        "tokenizer": (lambda copy: (copy / "tokenizer.json").unlink(), "cannot make a tokenizer"),
        "processor": (lambda copy: (copy / "processor_config.json").unlink(), "no image processor"),
        "config": (lambda copy: (copy / "config.json").write_text("{"), "not JSON"),
    }
    for name, (change, words) in cases.items():
        out = tmp_path / f"{name}-onnx"
        with pytest.raises(CompExportError, match=words):
            export_artifact(changed(name, change), out, Origin("tiny"))
        assert not out.exists()
    assert not list(tmp_path.glob(".*onnx*"))  # nothing half-written


def test_plans_of_other_models_are_refused(gqa, tmp_path):
    _, checkpoint = gqa
    for plan, words in (
        (make_plan(tiny_config(kv_heads=4)), "pass the --model"),
        (make_plan(tiny_config(kv_heads=2), drops=((4, 0.5, 1.0),)), "after block 4 of language"),
    ):
        with pytest.raises(CompExportError, match=words):
            write_slim_checkpoint(checkpoint, plan, tmp_path / "slim")
    assert not (tmp_path / "slim").exists()


@pytest.fixture(scope="module")
def artifact(gqa, tmp_path_factory):
    out = tmp_path_factory.mktemp("artifact") / "onnx"
    export_artifact(gqa[1], out, Origin("tiny"))
    return out


def test_damaged_artifacts_are_refused_by_name(artifact, tmp_path):
    names = [entry.name for entry in load_artifact(artifact).manifest.files]
    assert {"decoder_model.onnx", "decoder_model.onnx.data", "tokenizer.json"} <= set(names)
    assert_damage_is_refused(artifact, names, load_artifact, "comp-export onnx", tmp_path)


def test_manifest_of_another_version_is_refused(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "copy")
    path = tmp_path / "copy" / MANIFEST_NAME
    result = json.loads(path.read_text())
    for change, words in (
        ({"version": 99}, "version 99"),
        ({"flavour": "other"}, "flavour"),
        ({"surprise": 1}, "surprise"),
    ):
        path.write_text(json.dumps(result | change))
        with pytest.raises(CompExportError, match=words):
            load_artifact(tmp_path / "copy")
    path.write_text("{")
    with pytest.raises(CompExportError, match="not JSON"):
        load_artifact(tmp_path / "copy")
    with pytest.raises(CompExportError, match="no artifact"):
        load_artifact(tmp_path / "nowhere")


def test_a_second_export_replaces_the_whole_artifact(artifact, gqa, tmp_path):
    out = tmp_path / "onnx"
    shutil.copytree(artifact, out)
    (out / "decoder_model.onnx.data").write_bytes(b"stale" * 100000)
    (out / "stale.bin").write_bytes(b"stale")
    export_artifact(gqa[1], out, Origin("tiny"))
    assert not (out / "stale.bin").exists()
    for path in out.iterdir():
        if path.name != MANIFEST_NAME:
            assert path.read_bytes() == (artifact / path.name).read_bytes()  # and deterministic


def test_builder_deletes_stale_data(tmp_path):
    graph = GraphBuilder("g", Target())
    weight = graph.weight("w", (300, 4), lambda: np.ones((300, 4)))
    x = graph.input("x", weight.dtype, (1, 300))
    graph.output("y", graph.op("MatMul", x, weight), weight.dtype, (1, 4))
    (tmp_path / "g.onnx.data").write_bytes(b"stale" * 10000)
    graph.save(tmp_path / "g.onnx")
    assert (tmp_path / "g.onnx.data").stat().st_size == 4800


def test_export_streams_tensors(tmp_path):
    """The peak is that of a few tensors, not of the model."""
    config = tiny_config(
        layers=24,
        text_hidden_size=128,
        text_intermediate_size=512,
        text_num_attention_heads=4,
        text_head_dim=32,
    )
    checkpoint = save_checkpoint(tiny_model(config), tmp_path / "model")
    size = (checkpoint / "model.safetensors").stat().st_size
    export_artifact(checkpoint, tmp_path / "warm", Origin("tiny"))
    tracemalloc.start()
    export_artifact(checkpoint, tmp_path / "onnx", Origin("tiny"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = (tmp_path / "onnx" / "decoder_model.onnx.data").stat().st_size
    assert written > 0.9 * size > 20e6
    # Hashing reads blocks of 4 MiB; other memory is nodes and a few tensors of 256 KiB.
    assert peak < 0.4 * size


def test_artifact_names(tmp_path):
    names = {
        (flavour, precision, dense): artifact_directory(
            tmp_path, dense, Target(flavour, precision)
        ).name
        for flavour in ("onnxruntime", "standard")
        for precision in ("float32", "float16")
        for dense in (False, True)
    }
    assert len(set(names.values())) == 8
    assert names["onnxruntime", "float32", False] == "onnx"
    assert names["onnxruntime", "float32", True] == "onnx-dense"
    assert names["standard", "float16", True] == "onnx-dense-standard-float16"


def test_processor_settings(gqa, tmp_path):
    _, checkpoint = gqa
    config = json.loads((checkpoint / "config.json").read_text())
    processor = AutoProcessor.from_pretrained(checkpoint)
    result = read_image_processing(checkpoint)
    assert result.size.shortest_edge == 56
    assert list(result.image_mean) == list(processor.image_processor.image_mean)
    tokenizer = read_tokenizer(checkpoint)
    tokens = read_special_tokens(checkpoint, config, IMAGE_TOKEN, tokenizer)
    assert tokens.image_token == "<image>"
    assert (tokens.bos_token_id, tokens.eos_token_ids, tokens.pad_token_id) == (1, (2,), 0)
    assert tokens.add_bos
    template = read_chat_template(checkpoint, "<image>", tokenizer)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a cat?"}]}]
    expected = processor.apply_chat_template(message, add_generation_prompt=True)
    assert render(template.source, template.tokens, user_turn("a cat?", 1), "it") == expected

    old = tmp_path / "old"  # the layout of older checkpoints on the hub
    shutil.copytree(checkpoint, old)
    settings = json.loads((old / "processor_config.json").read_text())
    (old / "processor_config.json").unlink()
    (old / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (old / "chat_template.jinja").unlink()
    (old / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    assert read_image_processing(old) == result
    own = read_chat_template(old, "<image>", tokenizer)
    rendered = render(own.source, own.tokens, user_turn("a cat?", 1), "it")
    assert rendered == "USER: <image>\na cat? ASSISTANT:"
    assert read_special_tokens(old, config, IMAGE_TOKEN, tokenizer).eos_token_ids == (2, 3)
    (old / "chat_template.json").write_text(json.dumps({"chat_template": "<s>no image"}))
    with pytest.raises(CompExportError, match="without <image> once"):
        read_chat_template(old, "<image>", tokenizer)
    (old / "chat_template.json").write_text(json.dumps({"chat_template": "an <image>, no words"}))
    with pytest.raises(CompExportError, match="without the words of the prompt"):
        read_chat_template(old, "<image>", tokenizer)


def test_manifest_needs_neither_torch_nor_onnx():
    import subprocess

    code = (
        "import sys; import export.artifact.manifest; "
        "bad = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_export_needs_no_torch():
    import subprocess

    code = (
        "import sys; import export.exporter, export.weights.slim; "
        "bad = {'torch', 'transformers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
