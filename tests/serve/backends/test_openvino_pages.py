"""A decoder in OpenVINO: its caches are pages, which prompts and steps write in place."""

from pathlib import Path

import numpy as np
import pytest

from comp.errors import CompExportError
from comp.plan import DECODER_RANKINGS
from export.artifact.llava_manifest import LlavaArtifact
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.openvino import paged_decoder as openvino_pages
from export.openvino.graph import OpenVinoGraph, computes_bfloat16
from export.openvino.paged_attention import PAGE, attention_in_pages
from export.openvino.paged_decoder import PageBuffers
from serve.backends import llava_decoder as decoder
from serve.backends.llava_graphs import GraphBackend
from serve.backends.open import open_artifact
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from tests.serve.random_llava import DROPS, HEADS, LAYERS, SIDE, noise, random_llava

pytest.importorskip("openvino", reason="runs in OpenVINO: pip install -e '.[openvino]'")

OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)


def backend_of(directory, name="openvino"):
    return GraphBackend(*open_artifact(directory, LlavaArtifact, threads=1, backend=name))


def kinds_of(part):
    """Count the kinds of operators of a compiled decoder."""
    graph = part._compiled.get_runtime_model()
    return [str(node.get_rt_info()["layerType"].value) for node in graph.get_ops()]


def step_of(backend, state, token):
    logits, state = backend.step([token], state)
    return logits[0], state


@pytest.fixture(scope="module", params=["float32", "int8", "int4", "bfloat16"])
def compressed_standard(request, checkpoint, plan, tmp_path_factory):
    if request.param == "bfloat16" and not computes_bfloat16():
        pytest.skip("this CPU does not compute bfloat16")
    out = tmp_path_factory.mktemp("steps") / request.param
    target = Target("standard", request.param)
    export_artifact(checkpoint.path, out, Origin.of_plan(plan), target, plan)
    return out


def test_attention_is_one_operator_with_its_caches(compressed_standard):
    backend = backend_of(compressed_standard)
    kinds = kinds_of(backend._decoder._graph)
    assert kinds.count("PagedAttention") == LAYERS
    assert kinds.count("RoPE") == 2 * LAYERS
    assert kinds.count("Softmax") == len(DROPS)  # that rank tokens
    kinds = kinds_of(backend._decoder._steps._alone)  # a step ranks nothing
    assert kinds.count("PagedAttention") == LAYERS
    assert kinds.count("RoPE") == 2 * LAYERS
    assert not {"Softmax", "TopK", "GatherND", "GatherElements"} & set(kinds)


@pytest.mark.parametrize("compressed_standard", ["float32"], indirect=True)
def test_large_weights_are_held_once(compressed_standard, monkeypatch):
    """Answers are the same when one graph reads prompts and makes steps."""
    engines = [Engine.load(compressed_standard, threads=1, backend="openvino")]
    monkeypatch.setattr(openvino_pages, "HELD_TWICE", 10_000)
    engines.append(Engine.load(compressed_standard, threads=1, backend="openvino"))
    twice, once = (engine._backend._decoder._steps for engine in engines)
    assert (twice._alone is None, once._alone is None) == (False, True)
    answers = [engine.generate([noise(1)], "where is it?", OPTIONS) for engine in engines]
    assert answers[0].token_ids == answers[1].token_ids
    assert [len(steps._shared._free) for steps in (twice, once)] == [0, 1]


@pytest.mark.parametrize("ranking", ["received", *DECODER_RANKINGS])
def test_steps_leave_out_every_kind_of_ranking(checkpoint, plan, ranking, tmp_path):
    drops = tuple(drop.model_copy(update={"ranking": ranking}) for drop in DROPS)
    ranked = plan.model_copy(update={"drops": drops})
    out = tmp_path / "onnx"
    export_artifact(checkpoint.path, out, Origin.of_plan(ranked), Target("standard"), ranked)
    ids = np.random.default_rng(5).integers(10, 300, (1, 40))
    split = (np.arange(3, 19)[None], np.r_[:3, 19:40][None])
    backends = [backend_of(out, name) for name in ("openvino", "onnxruntime")]
    pictures = np.random.default_rng(6).standard_normal((1, 3, SIDE, SIDE), np.float32)
    states = [backend.prefill(pictures, ids, *split, 1.0).state for backend in backends]
    for token in (11, 12, 13):
        steps = [step_of(b, state, token) for b, state in zip(backends, states, strict=True)]
        (mine, theirs), states = zip(*steps, strict=True)
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert "TopK" not in kinds_of(backends[0]._decoder._steps._alone)


def test_old_contents_of_pages_are_ignored(compressed_standard, monkeypatch):
    """Unwritten memory may hold anything, NaN too."""
    ids = np.random.default_rng(4).integers(10, 300, (2, PAGE + 8))
    split = (np.zeros((2, 0), np.int64), np.tile(np.arange(PAGE + 8), (2, 1)))
    make, actual = PageBuffers.empty, []
    for bits in (0, 0xFFFF):

        def filled(self, shape, dtype=None, bits=bits):
            pages = make(self, shape)
            pages.tensor.data.view(np.uint16)[...] = bits
            return pages

        monkeypatch.setattr(PageBuffers, "empty", filled)
        backend = backend_of(compressed_standard)
        read = backend.prefill(None, ids, *split, 1.0)
        logits, _ = backend.step([11, 12], read.state)
        actual.append((read.logits, logits))
    for clean, dirty in zip(*actual, strict=True):
        assert np.isfinite(dirty).all()
        np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("room", [1, PAGE, 2 * PAGE + 1])
def test_full_pages_are_extended(compressed_standard, room, monkeypatch):
    """The longest caches fill first: those after a drop have room for longer."""
    options = GenerationOptions(max_new_tokens=2 * PAGE, ignore_eos=True)
    prompts = [([noise(1)], "where is it?"), ([noise(2)], "where is it?")]

    def answer_and_steps():
        engine = Engine.load(compressed_standard, threads=1, backend="openvino")
        answers = engine.generate_batch(prompts, options)
        return [answer.token_ids for answer in answers], engine._backend._decoder._steps

    expected, _ = answer_and_steps()
    monkeypatch.setattr(decoder, "ROOM", room)
    actual, steps = answer_and_steps()
    assert actual == expected
    assert len(steps._shared._free) == 1  # given back whenever pages were added, and at the end


@pytest.mark.parametrize("groups", [1, 2, HEADS])
def test_grouped_heads_answer_alike(checkpoint, groups, tmp_path):
    model = random_llava(checkpoint.processor.tokenizer, seed=3, key_value_heads=groups)
    model.save_pretrained(tmp_path / "model")
    checkpoint.processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "onnx"
    export_artifact(tmp_path / "model", out, Origin("t"), Target("standard", "float32"))
    actual, expected = (
        Engine.load(out, threads=1, backend=name).generate([noise(1)], "where is it?", OPTIONS)
        for name in ("openvino", "onnxruntime")
    )
    assert actual.token_ids == expected.token_ids
    assert len(set(actual.token_ids)) > 2


@pytest.mark.parametrize("compressed_standard", ["float32"], indirect=True)
def test_caches_are_not_rounded_to_bytes(compressed_standard):
    """OpenVINO's own choice is off by a hundredth; float32 is off by at most a ten thousandth."""
    ids = np.random.default_rng(4).integers(10, 300, (1, 40))
    split = (np.zeros((1, 0), np.int64), np.arange(40)[None])
    backends = [backend_of(compressed_standard, name) for name in ("openvino", "onnxruntime")]
    states = [backend.prefill(None, ids, *split, 1.0).state for backend in backends]
    for token in (11, 12, 13):
        steps = [step_of(b, state, token) for b, state in zip(backends, states, strict=True)]
        (mine, theirs), states = zip(*steps, strict=True)
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("compressed_standard", ["float32"], indirect=True)
def test_an_abandoned_answer_releases_its_caches(compressed_standard):
    """The buffers of its caches are reused by the next answer, which equals the first."""
    engine = Engine.load(compressed_standard, threads=1, backend="openvino")
    steps = engine._backend._decoder._steps
    first = engine.generate([noise(1)], "where is it?", OPTIONS).token_ids
    stream = engine.stream([noise(2)], "and now something else, longer than that?", OPTIONS)
    for _ in range(4):
        next(stream)
    assert not steps._alone._free
    stream.close()
    assert len(steps._alone._free) == 1
    assert engine.generate([noise(1)], "where is it?", OPTIONS).token_ids == first
    assert len(steps._alone._free) == 1


def test_a_graph_of_another_kind_is_refused():
    import openvino
    from openvino import opset13 as op

    past = op.parameter([1, 2, -1, 16], name="past_key_values.0.key")
    present = op.result(op.relu(past))
    present.set_friendly_name("present.0.key")
    values = op.parameter([1, 2, -1, 16], name="past_key_values.0.value")
    also = op.result(values)
    also.set_friendly_name("present.0.value")
    model = openvino.Model([present, also], [past, values])
    with pytest.raises(CompExportError, match=r"present\.0\.key has no Concat.*export it again"):
        attention_in_pages(model)


@pytest.mark.parametrize(
    ("precision", "width", "group"), [("int8", 80, 64), ("int4", 128, 64), ("int4", 80, 16)]
)
def test_inputs_are_rounded_in_groups_no_wider_than_those_of_weights(
    checkpoint, precision, width, group, tmp_path
):
    """With wider groups OpenVINO would not round, and take twice as long."""
    model = random_llava(checkpoint.processor.tokenizer, seed=3, intermediate=width)
    model.save_pretrained(tmp_path / "model")
    checkpoint.processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "onnx"
    export_artifact(tmp_path / "model", out, Origin("t"), Target("standard", precision))
    graph = OpenVinoGraph(Path(out) / "decoder_model.onnx", precision)
    assert graph._compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == group
