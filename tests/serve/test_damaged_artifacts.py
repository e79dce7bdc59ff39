"""Artifacts that differ from their manifest are refused by name when loaded."""

import copy
import hashlib
import json
import os
import random
import shutil

import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.commands.inspect import command as inspect_command
from comp.errors import CompExportError
from export.artifact.graph_check import POSITIONS
from export.artifact.load import load_artifact
from export.artifact.manifest import MANIFEST_NAME
from export.artifact.onnx_file import read_onnx_file
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.manifest import load_engines
from serve.engines.blip_judge import Judge
from serve.engines.retriever import Retriever
from serve.generation.options import GenerationOptions
from serve.loading import load_engine
from tests.comp import small_blip, small_clip
from tests.export.manifests import artifact_manifest, encoder_manifest, engine_manifest
from tests.serve.random_llava import noise

QUESTION = "where is the fox?"
FOUR = GenerationOptions(max_new_tokens=4, ignore_eos=True)
REMEDY = "`comp-export onnx --force`"
KINDS = ("llava", "clip", *small_blip.TASKS)


@pytest.fixture(scope="module")
def artifacts(compressed_artifact, tmp_path_factory):
    """One artifact of each family and task, made at the first use."""
    made = {"llava": compressed_artifact}

    def of(kind):
        if kind not in made:
            home = tmp_path_factory.mktemp(kind)
            model = small_clip.random_clip(2) if kind == "clip" else small_blip.random_blip(kind, 2)
            model.save(home / "dense")
            export_artifact(home / "dense", home / "onnx", Origin("t"))
            made[kind] = home / "onnx"
        return made[kind]

    return of


@pytest.fixture
def damaged(artifacts, tmp_path):
    """Return a copy of an artifact after ``change(manifest)``; the test may damage its files."""

    def of(kind, change=lambda manifest: None):
        out = tmp_path / "copy"
        if not out.exists():
            shutil.copytree(artifacts(kind), out)
        path = out / MANIFEST_NAME
        manifest = json.loads((artifacts(kind) / MANIFEST_NAME).read_text())
        changed = change(manifest)
        path.write_text(json.dumps(manifest if changed is None else changed))
        return out

    return of


def relist(directory, name):
    """Update a file's entry in the manifest."""
    path = directory / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    data = (directory / name).read_bytes()
    entry = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    others = [each for each in manifest["files"] if each["name"] != name]
    path.write_text(json.dumps(manifest | {"files": [*others, entry]}))


def refused(directory, *words, remedy=REMEDY):
    """Check that ``load_engine`` raises an error with all of these."""
    with pytest.raises(CompExportError) as caught:
        load_engine(directory, threads=1)
    for word in (*words, remedy):
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_required_file_is_listed(kind, artifacts, damaged):
    files = json.loads((artifacts(kind) / MANIFEST_NAME).read_text())["files"]
    refused(damaged(kind, lambda manifest: manifest.update(files=[])), "does not list")
    for entry in files:
        rest = [each for each in files if each is not entry]
        directory = damaged(kind, lambda manifest, rest=rest: manifest.update(files=rest))
        refused(directory, entry["name"], "not list")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: os.mkfifo(file), "is not a regular file"),
        (lambda file: file.mkdir(), "is not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda file: file.symlink_to("loop") or file.with_name("loop").symlink_to(file), "cannot"),
        (lambda file: file.symlink_to("/nowhere/at/all"), "is missing"),
    ],
    ids=["fifo", "directory", "device", "loop", "dangling"],
)
def test_special_files_are_refused_without_waiting(spoil, words, damaged):
    for name in ("tokenizer.json", "decoder_model.onnx.data"):
        directory = damaged("llava")
        (directory / name).unlink()
        spoil(directory / name)
        refused(directory, name, words)
        shutil.rmtree(directory)


def test_a_link_out_of_the_artifact_is_refused(artifacts, damaged, tmp_path):
    directory = damaged("llava")
    file = directory / "tokenizer.json"
    shutil.move(file, tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    refused(directory, "tokenizer.json", "leads out of the artifact")
    file.unlink()
    shutil.move(tmp_path / "elsewhere.json", directory / "same.json")
    file.symlink_to("same.json")  # links inside are allowed
    load_artifact(directory)
    (tmp_path / "link").symlink_to(directory)  # and the folder itself may be a link
    load_artifact(tmp_path / "link")


@pytest.mark.parametrize(
    "name", ["../tokenizer.json", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b", "x" * 300]
)
def test_names_outside_the_artifact_are_refused(name, damaged):
    def change(manifest):
        manifest["files"].append({"name": name, "bytes": 1, "sha256": "0" * 64})

    refused(damaged("llava", change), "manifest.json", "files.")


def test_a_file_is_listed_once_and_the_manifest_never(damaged):
    def twice(manifest):
        manifest["files"].append(manifest["files"][0])

    refused(damaged("llava", twice), "files", "cannot be listed")
    entry = {"name": MANIFEST_NAME, "bytes": 1, "sha256": "0" * 64}
    refused(damaged("llava", lambda m: m["files"].append(entry)), "files", "cannot be listed")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "unlisted.bin", "*/_ORT/*"])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_unlisted_weights_are_refused(place, location, damaged):
    directory = damaged("llava")
    (directory / "unlisted.bin").write_bytes(b"\0" * 64)
    path = directory / "embed_tokens.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[16], data_location=1)
    tensor.external_data.add(key="location", value=location)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    else:
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    path.write_bytes(model.SerializeToString())
    relist(directory, path.name)
    refused(directory, "embed_tokens.onnx", repr(location), "does not list")


LIES = {
    "llava": {
        "decoder.num_layers": "num_layers",
        "decoder.head_dim": "past_key_values.0.key",
        "decoder.num_key_value_heads.1": "past_key_values.1",
        "decoder.hidden_size": "inputs_embeds",
        "decoder.vocab_size": "logits",
        "decoder.max_position_embeddings": "positions",
        "decoder.drops.0.after_layer": "kept.2",
        "vision.image_size": "pixel_values",
        "vision.num_channels": "pixel_values",
        "vision.image_tokens": "image_features",
    },
    "clip": {"vision.image_size": "pixel_values", "text.max_position_embeddings": "positions"},
    "retrieval": {
        "vision.image_size": "pixel_values",
        "vision.tokens": "encoder_hidden_states",
        "vision.hidden_size": "encoder_hidden_states",
        "text.max_position_embeddings": "positions",
    },
    "question": {
        "decoder.head_dim": "cross.0.key",
        "decoder.num_attention_heads.0": "past_key_values.0",
        "decoder.num_cross_attention_heads.0": "cross.0",
        "decoder.vocab_size": "logits",
        "decoder.max_position_embeddings": "positions",
        "text.hidden_size": "encoder_hidden_states",
        "text.max_position_embeddings": "positions",
    },
    "caption": {"vision.hidden_size": "encoder_hidden_states", "vision.tokens": "encoder_hidden"},
    "statement": {"vision.tokens": "encoder_hidden_states.0"},
}


def change_at(manifest, place, change):
    """Change the value at ``a.b.0``."""
    *way, last = [int(word) if word.isdigit() else word for word in place.split(".")]
    for word in way:
        manifest = manifest[word]
    manifest[last] = change(manifest[last])


@pytest.mark.parametrize("kind", LIES)
def test_shapes_other_than_the_graphs_are_refused(kind, damaged):
    for place, words in LIES[kind].items():
        directory = damaged(kind, lambda m, p=place: change_at(m, p, lambda value: value + 1))
        refused(directory, words)


def test_missing_layers_are_refused(damaged):
    """The manifest is consistent, but describes a decoder with one block fewer."""

    def change(manifest):
        shape = manifest["decoder"]
        shape["num_layers"] -= 1
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            shape[name].pop()
        shape["drops"] = shape["drops"][:1]

    refused(damaged("llava", change), "decoder_model.onnx", "does not speak")


def test_pictures_of_another_size_are_refused(damaged):
    for size in ({"height": 70, "width": 56}, {"shortest_edge": 56}):

        def change(manifest, size=size):
            manifest["image_processor"] |= {"size": size, "do_center_crop": False}

        refused(damaged("llava", change), MANIFEST_NAME, "image_processor makes pictures of")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested deeper"),
        ('{"version": 1, "rate": NaN}', "rate is NaN"),
        ('{"version": 1, "rate": 1e999}', "rate is 1e999"),
        ('{"version": true}', "version"),
        ('{"version": 1, "family": ["llava"]}', "family"),
        ('{"version": 1, "family": "llava"}', "flavour"),
        ("null", "holds no JSON object"),
        ("\x00", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_text_other_than_a_manifest_is_refused(text, words, damaged):
    directory = damaged("llava")
    (directory / MANIFEST_NAME).write_text(text)
    refused(directory, MANIFEST_NAME, words)


def test_a_manifest_other_than_a_file_is_refused(damaged):
    directory = damaged("llava")
    path = directory / MANIFEST_NAME
    path.unlink()
    os.mkfifo(path)
    refused(directory, MANIFEST_NAME, "a FIFO")


def test_another_precision_is_refused(damaged):
    directory = damaged("llava", lambda manifest: manifest.update(precision="float16"))
    refused(directory, "past_key_values.0.key", "elements", "float16")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * 100,
        lambda data: b"{}" * 300,
        lambda data: data[:40] + b"\x3f" * 40 + data[80:],
    ],
    ids=["half", "empty", "ones", "text", "hole"],
)
def test_a_bad_graph_with_the_right_hash_is_refused(spoil, damaged):
    directory = damaged("llava")
    path = directory / "vision_encoder.onnx"
    path.write_bytes(spoil(path.read_bytes()))
    relist(directory, path.name)
    refused(directory, "vision_encoder.onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_graph_reader_equals_onnx(kind, artifacts):
    """Compare ports, weights and their files; tables of positions have the expected names."""
    tables = 0
    for path in artifacts(kind).glob("*.onnx"):
        result, model = read_onnx_file(path, ""), onnx.load(path, load_external_data=False).graph
        for mine, theirs in ((result.inputs, model.input), (result.outputs, model.output)):
            assert {name: port.dtype for name, port in mine.items()} == {
                port.name: port.type.tensor_type.elem_type for port in theirs
            }
            for port in theirs:
                dims = port.type.tensor_type.shape.dim
                assert mine[port.name].dims == tuple(d.dim_param or d.dim_value for d in dims)
        named = {tensor.name: tuple(tensor.dims) for tensor in model.initializer}
        assert {name: result.weights[name] for name in named} == named
        assert result.external == {
            entry.value
            for tensor in model.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        tables += sum(name in result.weights for name in POSITIONS)
    assert tables == {"retrieval": 2, "question": 2}.get(kind, 1)


ODD = [None, True, "x", "", [], {}, [None], -1, 0, 1.5, 1e300, 2**31, 10**18, 10**400, "1" * 500]


def places_of(value, place=()):
    """Every place in a manifest."""
    if isinstance(value, dict):
        yield from ((*place, key) for key in value)
        for key, each in value.items():
            yield from places_of(each, (*place, key))
    elif isinstance(value, list):
        yield from ((*place, number) for number in range(len(value)))
        for number, each in enumerate(value[:3]):
            yield from places_of(each, (*place, number))


def spoilt(manifest, seed):
    """The manifest with one to three values changed, deleted, or added."""
    rng = random.Random(seed)
    manifest = copy.deepcopy(manifest)
    for _ in range(rng.choice([1, 1, 2, 3])):
        *way, last = rng.choice(list(places_of(manifest)))
        inner = manifest
        for word in way:
            inner = inner[word]
        if rng.random() < 0.15:
            del inner[last]
        elif rng.random() < 0.1 and isinstance(inner, dict):
            inner["surprise"] = rng.choice(ODD)
        else:
            inner[last] = rng.choice(ODD)
    return manifest


def answers_of(engine):
    if isinstance(engine, Retriever):
        return engine.rank([noise(1)], ["a fox", "a ram"]).of_texts.tolist()
    if isinstance(engine, Judge):
        return engine.judge([noise(1), noise(2)], "a fox").probability
    return engine.generate([noise(1)], QUESTION, FOUR).token_ids


# Valid changes of a manifest, after which another answer is right.
MEANINGS = (
    "image_processor",
    "tokens",
    "prompt_template",
    "logit_scale",
    "decoder",
    "text",
    "drops",
)


@pytest.mark.parametrize("kind", KINDS)
def test_any_manifest_is_refused_by_name_or_answers(kind, artifacts, damaged):
    path = artifacts(kind) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    expected = answers_of(load_engine(artifacts(kind), threads=1))
    outcomes, nameless = {"refused": 0, "same": 0, "meant": 0}, list[str]()
    for seed in range(50):
        changed = spoilt(manifest, seed)
        directory = damaged(kind, lambda _, changed=changed: changed)
        try:
            answer = answers_of(load_engine(directory, threads=1, check_hashes=False))
        except CompExportError as error:
            outcomes["refused"] += 1
            if not any(word in str(error) for word in ("manifest", ".onnx", "chat template")):
                nameless.append(str(error))
            continue
        means = any(changed.get(name) != manifest.get(name) for name in MEANINGS)
        assert answer == expected or means, seed
        outcomes["same" if answer == expected else "meant"] += 1
    assert nameless == []
    assert outcomes["refused"] > 30
    assert outcomes["same"]


def test_inspect_shows_any_manifest_or_refuses_it_by_name(artifacts, damaged, tmp_path):
    engine_manifest(artifact_manifest(), tmp_path).save(tmp_path)
    for path in (artifacts("llava") / MANIFEST_NAME, tmp_path / MANIFEST_NAME):
        manifest = json.loads(path.read_text())
        shown = 0
        for seed in range(60):
            changed = spoilt(manifest, seed)
            directory = damaged("llava", lambda _, changed=changed: changed)
            result = CliRunner().invoke(inspect_command, [str(directory)])
            shown += result.exit_code == 0
            if result.exit_code:
                assert isinstance(result.exception, CompExportError), result.exception
                assert MANIFEST_NAME in str(result.exception)
        assert 0 < shown < 60


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), native=st.booleans(), family=st.booleans())
def test_any_manifest_of_engines_is_read_or_refused(seed, native, family, tmp_path_factory):
    directory = tmp_path_factory.mktemp("engines", numbered=True)
    try:
        model = artifact_manifest() if family else encoder_manifest("question")
        engine_manifest(model, directory).save(directory)
        path = directory / MANIFEST_NAME
        manifest = json.loads(path.read_text())
        assert load_engines(directory).manifest.artifact == model
        path.write_text(json.dumps(spoilt(manifest, seed)))
        try:
            load_engines(directory)
        except CompExportError as error:
            words = str(error)
        else:
            words = f"{directory} comp-export"
        assert str(directory) in words
        assert "comp-export" in words
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("engines", {}, "engines are none, the model needs vision_encoder"),
        ("files", [], "does not list vision_encoder.engine"),
        ("artifact_directory", "../../elsewhere", "artifact_directory"),
        ("engines.decoder.file", "../decoder.engine", "engines.decoder.file"),
        ("engines.decoder.graph", "decoder_model.onnx", "graph is decoder_model.onnx, not"),
        ("engines.decoder.profiles.1.name", "other", "profiles are prefill, other"),
        ("artifact.decoder.head_dim", 32, "past_key_values.0.key is"),
        ("artifact.vision.image_size", 70, "pixel_values is"),
        ("cache_capacities.0", 8, "past_key_values.0.key is"),
        ("cache_capacities", [8, 8], "1 segments of caches"),
        ("engines.decoder.profiles.0.shapes.position_ids.0", [9, 9999], "do not ascend"),
        ("engines.decoder.profiles.0.shapes.position_ids.0", [1], "position_ids is [1]"),
    ],
)
def test_engines_of_another_model_are_refused(place, value, words, tmp_path):
    engine_manifest(artifact_manifest(), tmp_path).save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    change_at(manifest, place, lambda _: value)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(CompExportError) as caught:
        load_engines(tmp_path)
    assert words in str(caught.value)


def test_onnxruntime_refuses_paths_outside_the_artifact(damaged):
    """If it ceases to, our check still refuses them, because it reads the same names."""
    directory = damaged("llava")
    path = directory / "embed_tokens.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../elsewhere" if entry.key == "location" else entry.value
    shutil.copyfile(directory / "embed_tokens.onnx.data", directory.parent / "elsewhere")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match="escapes"):
        ort.InferenceSession(str(path))
    relist(directory, path.name)
    refused(directory, "'../elsewhere'")


@pytest.mark.parametrize("precision", ["float16", "int4"])
def test_artifacts_of_every_kind_load(precision, checkpoint, plan, tmp_path):
    for flavour in ("onnxruntime", "standard"):
        out = tmp_path / flavour
        target = Target(flavour, precision)
        export_artifact(checkpoint.path, out, Origin.of_plan(plan), target, plan)
        load_artifact(out)
