"""Decode steps in OpenVINO: caches are states that attention is fused with, and hold what a prefill left."""

import numpy as np
import pytest

from export.artifact import Origin, export_artifact
from export.graph.builder import Target
from export.llava_manifest import LlavaArtifact
from export.openvino_graph import computes_bfloat16
from serve.backends.graph_backend import GraphBackend
from serve.backends.opening import open_artifact
from serve.engine import Engine
from serve.options import GenerationOptions
from tests.serve.random_llava import HEADS, LAYERS, noise, random_llava

pytest.importorskip("openvino", reason="runs in OpenVINO: pip install 'comp-export[openvino]'")

OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)


def backend_of(directory, name="openvino"):
    return GraphBackend(*open_artifact(directory, LlavaArtifact, threads=1, backend=name))


def kinds_of(backend):
    """Kinds of operators of the compiled steps, each as often as it is there."""
    graph = backend._decoder._steps._compiled.get_runtime_model()
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


def test_attention_is_one_operator_fused_with_its_caches(compressed_standard):
    kinds = kinds_of(backend_of(compressed_standard))
    assert kinds.count("ScaledDotProductAttention") == LAYERS
    assert kinds.count("MemoryInput") == 2 * LAYERS


@pytest.mark.parametrize("groups", [1, 2, HEADS])
def test_grouped_heads_answer_alike(checkpoint, groups, tmp_path):
    model = random_llava(checkpoint.processor.tokenizer, seed=3, key_value_heads=groups)
    model.save_pretrained(tmp_path / "model")
    checkpoint.processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "onnx"
    export_artifact(tmp_path / "model", out, Origin("t"), Target("standard", "float32"))
    found, expected = (
        Engine.load(out, threads=1, backend=name).generate([noise(1)], "where is it?", OPTIONS)
        for name in ("openvino", "onnxruntime")
    )
    assert found.token_ids == expected.token_ids
    assert len(set(found.token_ids)) > 2


@pytest.mark.parametrize("compressed_standard", ["float32"], indirect=True)
def test_caches_are_not_rounded_to_bytes(compressed_standard):
    """OpenVINO's own choice: a hundredth off, where float32 is a ten thousandth off at most."""
    ids = np.random.default_rng(4).integers(10, 300, (1, 40))
    split = (np.zeros((1, 0), np.int64), np.arange(40)[None])
    backends = [backend_of(compressed_standard, name) for name in ("openvino", "onnxruntime")]
    states = [backend.prefill(None, ids, *split, 1.0).state for backend in backends]
    for token in (11, 12, 13):
        steps = [step_of(b, state, token) for b, state in zip(backends, states, strict=True)]
        (mine, theirs), states = zip(*steps, strict=True)
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("compressed_standard", ["float32"], indirect=True)
def test_an_answer_that_is_broken_off_leaves_nothing_behind(compressed_standard):
    """What held its caches serves the next answer, which is the same as the first."""
    engine = Engine.load(compressed_standard, threads=1, backend="openvino")
    steps = engine._backend._decoder._steps
    first = engine.generate([noise(1)], "where is it?", OPTIONS).token_ids
    stream = engine.stream([noise(2)], "and now something else, longer than that?", OPTIONS)
    for _ in range(4):
        next(stream)
    assert not steps._free
    stream.close()
    assert len(steps._free) == 1
    assert engine.generate([noise(1)], "where is it?", OPTIONS).token_ids == first
    assert len(steps._free) == 1
