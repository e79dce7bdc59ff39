"""The choice of execution provider and of the variant of a run, and errors when one is missing."""

import sys
from types import SimpleNamespace

import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.errors import CompExportError
from export.artifact.load import read_manifest
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from serve.artifacts import ArtifactVariant
from serve.backends.onnxruntime.kernel_cache import cache_directory
from serve.backends.onnxruntime.provider_shapes import LIMITS, profile_options
from serve.backends.onnxruntime.providers import (
    CPU,
    CUDA,
    RTX,
    TENSORRT,
    SessionMaker,
    choose_provider,
)
from serve.engines.llava import Engine


@pytest.fixture(params=[[CPU], [CUDA, CPU], [TENSORRT, CUDA, CPU]], ids=["cpu", "cuda", "tensorrt"])
def available(request, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: request.param)
    return request.param


def test_auto_selects_cuda_where_available(available):
    has_cuda = CUDA in available
    assert choose_provider("auto", "auto") == ("cuda" if has_cuda else "cpu")
    assert choose_provider("auto", "cpu") == "cpu"
    if has_cuda:
        assert choose_provider("auto", "cuda") == "cuda"
    else:
        with pytest.raises(CompExportError, match=r"\.\[gpu\]"):
            choose_provider("auto", "cuda")


def test_a_missing_provider_is_refused_with_its_package(available):
    for name, provider, package in (
        ("cuda", CUDA, r"\.\[gpu\]"),
        ("tensorrt", TENSORRT, r"\.\[gpu,tensorrt\]"),
    ):
        if provider in available:
            assert choose_provider(name, "auto") == name
        else:
            with pytest.raises(CompExportError, match=rf"{provider}; .*{package}"):
                choose_provider(name, "auto")
    assert choose_provider("tensorrt-rtx", "auto") == "tensorrt-rtx"  # seen when it is loaded


@pytest.mark.parametrize(
    ("provider", "device"), [("cpu", "cuda"), ("cuda", "cpu"), ("tensorrt-rtx", "cpu")]
)
def test_contradictions_are_refused(provider, device):
    with pytest.raises(CompExportError, match=f"provider {provider} with device {device}"):
        choose_provider(provider, device)


def test_unknown_words_are_refused():
    with pytest.raises(CompExportError, match="unknown device 'tpu'"):
        choose_provider("auto", "tpu")
    with pytest.raises(CompExportError, match="unknown provider 'rocm'"):
        choose_provider("rocm", "auto")


@pytest.fixture(scope="module")
def standard(checkpoint, plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("standard") / "onnx-standard"
    export_artifact(checkpoint.path, out, Origin.of_plan(plan), Target("standard"), plan)
    return out


def parsed(text):
    """``{"a": [1, 2]}`` of ``a:1x2``."""
    pairs = (part.split(":") for part in text.split(","))
    return {name: [int(n) for n in dims.split("x")] for name, dims in pairs}


@pytest.mark.parametrize("graph", ["vision_encoder", "embed_tokens", "decoder_model"])
def test_profiles_name_every_input_with_its_dimensions(standard, graph):
    """The sizes that the providers are told fit the graph as ONNX Runtime sees it."""
    manifest = read_manifest(standard)
    options = profile_options(manifest, f"{graph}.onnx", "trt_profile")
    low, usual, high = (parsed(options[f"trt_profile_{w}_shapes"]) for w in ("min", "opt", "max"))
    session = ort.InferenceSession(str(standard / f"{graph}.onnx"))
    inputs = {port.name: port.shape for port in session.get_inputs()}
    assert low.keys() == usual.keys() == high.keys() == inputs.keys()
    for name, shape in inputs.items():
        for place, dim in enumerate(shape):
            sizes = [result[name][place] for result in (low, usual, high)]
            assert sizes == sorted(sizes)
            if isinstance(dim, int):
                assert set(sizes) == {dim}
    if graph == "decoder_model":
        assert low["vision_positions"][1] == 0
        assert low["past_key_values.0.key"][2] == 0
        longest = high["inputs_embeds"][1]
        assert high["past_key_values.0.key"][2] == longest + LIMITS.max_new_tokens


class _Sessions:
    """Stands in for ``InferenceSession``: records its arguments."""

    started = ()

    def __init__(self, path, options, providers):
        self.path, self.providers = path, providers
        type(self).last = self

    def get_providers(self):
        return list(self.started)


def test_the_tensorrt_provider_gets_sizes_cache_and_types(standard, tmp_path, monkeypatch):
    monkeypatch.setattr(ort, "InferenceSession", _Sessions)
    monkeypatch.setattr(_Sessions, "started", (TENSORRT, CUDA, CPU))
    manifest = read_manifest(standard).model_copy(update={"precision": "float16"})
    SessionMaker("tensorrt", manifest, tmp_path).session(standard / "decoder_model.onnx")
    (name, settings), *others = _Sessions.last.providers
    assert name == TENSORRT
    assert others == [CUDA, CPU]
    assert settings["trt_engine_cache_path"] == str(tmp_path)
    assert settings["trt_fp16_enable"] == "1"
    assert "trt_profile_max_shapes" in settings


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_fails_to_start_does_not_fall_back_to_cpu(
    standard, tmp_path, monkeypatch, provider
):
    monkeypatch.setattr(ort, "InferenceSession", _Sessions)
    monkeypatch.setattr(_Sessions, "started", (CPU,))
    maker = SessionMaker(provider, read_manifest(standard), tmp_path)
    with pytest.raises(CompExportError, match="cannot start it"):
        maker.session(standard / "decoder_model.onnx")


def test_errors_of_the_rtx_plugin_name_it(standard, tmp_path, monkeypatch):
    """Not installed, not loadable, and without a GPU: each has its message."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name = "onnxruntime_ep_nv_tensorrt_rtx"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CompExportError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        Engine.load(standard, provider="tensorrt-rtx")
    missing = str(tmp_path / "missing.so")
    plugin = SimpleNamespace(get_ep_name=lambda: RTX, get_library_path=lambda: missing)
    monkeypatch.setitem(sys.modules, name, plugin)
    with pytest.raises(CompExportError, match="cannot load"):
        Engine.load(standard, provider="tensorrt-rtx")
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    with pytest.raises(CompExportError, match="no RTX GPU here"):
        Engine.load(standard, provider="tensorrt-rtx")


def test_tensorrt_providers_need_the_standard_flavour(compressed_artifact):
    with pytest.raises(CompExportError, match="--flavour standard"):
        Engine.load(compressed_artifact, provider="tensorrt-rtx")


def test_bfloat16_is_refused_on_the_cpu(checkpoint, tmp_path):
    export_artifact(checkpoint.path, tmp_path / "a", Origin("t"), Target("standard", "bfloat16"))
    with pytest.raises(CompExportError, match=r"bfloat16.*--precision float16"):
        Engine.load(tmp_path / "a", device="cpu")


def test_caches_are_told_apart_by_artifact(standard, compressed_artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = read_manifest(standard), read_manifest(compressed_artifact)
    paths = {cache_directory("tensorrt", manifest) for manifest in (first, second, first)}
    assert len(paths) == 2
    assert all(path.is_dir() and path.is_relative_to(tmp_path / "comp-export") for path in paths)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CompExportError, match="XDG_CACHE_HOME"):
        cache_directory("tensorrt", first)


@pytest.mark.parametrize(
    ("words", "directory", "suffix"),
    [
        ({}, "onnx", ""),
        ({"provider": "cpu"}, "onnx", ""),
        ({"provider": "cuda"}, "onnx", "-cuda"),
        ({"provider": "cuda", "precision": "float16"}, "onnx-float16", "-cuda-float16"),
        ({"provider": "tensorrt"}, "onnx-standard", "-tensorrt-standard"),
        ({"backend": "openvino"}, "onnx-standard", "-openvino-standard"),
        (
            {"backend": "openvino-bfloat16"},
            "onnx-standard-int8",
            "-openvino-bfloat16-standard-int8",
        ),
        ({"backend": "tensorrt"}, "tensorrt", "-tensorrt"),
        (
            {"backend": "tensorrt", "precision": "bfloat16"},
            "tensorrt-bfloat16",
            "-tensorrt-bfloat16",
        ),
    ],
)
def test_options_select_the_variant(tmp_path, words, directory, suffix):
    variant = ArtifactVariant.choose(**words)
    assert variant.directory(tmp_path, "compressed") == tmp_path / directory
    assert variant.suffix == suffix


def test_engine_and_graph_options_are_not_mixed():
    with pytest.raises(CompExportError, match="--provider cuda"):
        ArtifactVariant.choose("tensorrt", "cuda")
    with pytest.raises(CompExportError, match="--provider cpu"):
        ArtifactVariant.choose("openvino", "cpu")
    with pytest.raises(CompExportError, match="--flavour onnxruntime"):
        ArtifactVariant.choose("tensorrt", flavour="onnxruntime")


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("onnxruntime", ArtifactVariant.choose()),
        ("onnxruntime:cuda", ArtifactVariant.choose(provider="cuda")),
        ("onnxruntime:cpu:float16", ArtifactVariant.choose(provider="cpu", precision="float16")),
        ("openvino", ArtifactVariant.choose("openvino")),
        ("openvino:float16", ArtifactVariant.choose("openvino", precision="float16")),
        ("openvino-bfloat16", ArtifactVariant.choose("openvino-bfloat16", precision="int8")),
        ("openvino-bfloat16:int4", ArtifactVariant.choose("openvino-bfloat16", precision="int4")),
        ("tensorrt", ArtifactVariant.choose("tensorrt")),
        ("tensorrt:bfloat16", ArtifactVariant.choose("tensorrt", precision="bfloat16")),
    ],
)
def test_backends_are_parsed_from_a_word(text, variant):
    assert ArtifactVariant.parse(text) == variant


@given(st.text(":abcdeno-", max_size=24))
def test_unknown_backend_words_are_refused_in_one_line(text):
    with pytest.raises(CompExportError, match="is no backend"):
        ArtifactVariant.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "onnxruntime:",
        "onnxruntime:rocm",
        "onnxruntime:cpu:int3",
        "tensorrt:cuda",
        "openvino:cpu",
    ],
)
def test_misspelt_backends_are_refused(text):
    with pytest.raises(CompExportError, match="is no backend"):
        ArtifactVariant.parse(text)
