"""The choice of TensorRT and of GPUs, and engines that are refused before they are loaded."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.errors import CompExportError
from export.tensorrt import library as module_of_choice
from export.tensorrt.build.capability import choose_capabilities, parse_capabilities
from export.tensorrt.library import TensorRT, find_tensorrt
from export.tensorrt.limits import Limits
from export.tensorrt.manifest import EngineManifest, load_engines, read_engine_manifest
from tests.export.manifests import artifact_manifest, engine_manifest

COMPILED = ("7.5", "8.0", "8.9", "12.0")
RTX = TensorRT(
    "tensorrt_rtx",
    SimpleNamespace(
        ComputeCapability=SimpleNamespace(
            __members__=dict.fromkeys(["NONE", "CURRENT", "SM75", "SM80", "SM89", "SM120"])
        )
    ),
    "1.7.1",
)
DATA_CENTRE = TensorRT("tensorrt", SimpleNamespace(), "10.13.0")

capabilities = st.tuples(st.integers(0, 99), st.integers(0, 9)).map(lambda p: f"{p[0]}.{p[1]}")


@given(
    wanted=st.lists(capabilities, min_size=1, max_size=5), blank=st.sampled_from(["", " ", "  "])
)
def test_capabilities_are_unique_and_ordered(wanted, blank):
    text = ",".join(f"{blank}{part}{blank}" for part in wanted)
    assert parse_capabilities(text) == tuple(dict.fromkeys(wanted))
    assert parse_capabilities(f",{text},,") == parse_capabilities(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("8", "'8'"),
        ("sm89", "'sm89'"),
        ("8.9,12", "'12'"),
        ("8.9;12.0", "'8.9;12.0'"),
        ("8.9 12.0", "'8.9 12.0'"),
        ("8.9.1", "'8.9.1'"),
        ("100.0", "'100.0'"),
        ("-8.9", "'-8.9'"),
        ("", "nothing"),
        (" , ", "nothing"),
    ],
)
def test_a_bad_capability_is_named(text, wrong):
    with pytest.raises(CompExportError, match=r"write them as 8\.9 or 8\.0,8\.9,12\.0") as caught:
        parse_capabilities(text)
    assert f"--compute-capability {text!r}" in str(caught.value)
    assert wrong in str(caught.value)


def test_ahead_of_time_builders_list_their_capabilities():
    assert RTX.ahead_of_time
    assert RTX.capabilities == COMPILED
    assert not DATA_CENTRE.ahead_of_time
    assert DATA_CENTRE.capabilities == ()


@pytest.mark.parametrize(
    ("requested", "local", "chosen"),
    [
        (None, None, ("8.0", "8.9", "12.0")),  # Turing only on request
        (None, "8.9", ("8.9",)),
        (None, "9.0", ("8.0", "8.9", "12.0")),  # a GPU that it does not compile for
        (("12.0", "8.0"), None, ("12.0", "8.0")),
        (("12.0",), "8.9", ("12.0",)),
        (("7.5",), None, ("7.5",)),
    ],
)
def test_ahead_of_time_builds_accept_any_known_capability(requested, local, chosen):
    assert choose_capabilities(RTX, requested, local) == chosen


@pytest.mark.parametrize("local", [None, "8.9", "9.0"])
def test_an_unknown_capability_is_refused_with_the_known_ones(local):
    with pytest.raises(
        CompExportError, match=r"--compute-capability 9\.0: tensorrt_rtx 1"
    ) as caught:
        choose_capabilities(RTX, ("8.9", "9.0", "10.0"), local)
    assert "7.5, 8.0, 8.9, 12.0" in str(caught.value)
    assert "with the package tensorrt" in str(caught.value)


def test_builds_on_the_target_use_the_local_gpu():
    assert choose_capabilities(DATA_CENTRE, None, "9.0") == ("9.0",)
    assert choose_capabilities(DATA_CENTRE, ("9.0",), "9.0") == ("9.0",)
    with pytest.raises(CompExportError, match=r"--compute-capability 8\.9: tensorrt ") as caught:
        choose_capabilities(DATA_CENTRE, ("9.0", "8.9"), "9.0")
    assert "here (9.0)" in str(caught.value)
    assert "tensorrt_rtx" in str(caught.value)


@pytest.mark.parametrize("requested", [None, ("8.9",)])
def test_builds_on_the_target_need_a_gpu(requested):
    with pytest.raises(CompExportError, match=r"there is none here: build on the target") as caught:
        choose_capabilities(DATA_CENTRE, requested, None)
    assert "[tensorrt-rtx]'" in str(caught.value)


@pytest.fixture
def machine(monkeypatch):
    """Pretend that these modules are installed and that this GPU is present."""

    def pretend(installed, gpu):
        modules = {name: SimpleNamespace(__version__=f"{name} 1.0") for name in installed}
        monkeypatch.setattr(module_of_choice, "_load", modules.get)
        monkeypatch.setattr(module_of_choice, "gpu_capability", lambda: gpu)
        return modules

    return pretend


BOTH = ("tensorrt", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("installed", "gpu", "preferred"),
    [
        (BOTH, "8.9", "tensorrt"),
        (BOTH, None, "tensorrt_rtx"),
        (("tensorrt",), None, "tensorrt"),
        (("tensorrt_rtx",), "8.9", "tensorrt_rtx"),
    ],
)
def test_installed_builders_are_detected(installed, gpu, preferred, machine):
    modules = machine(installed, gpu)
    result = find_tensorrt()
    assert (result.name, result.version) == (preferred, f"{preferred} 1.0")
    assert result.module is modules[preferred]
    for name in installed:
        assert find_tensorrt(name).name == name


def test_without_a_builder_both_extras_are_named(machine):
    for gpu in (None, "9.0"):
        machine((), gpu)
        with pytest.raises(CompExportError, match="no TensorRT is installed") as caught:
            find_tensorrt()
        assert ".[tensorrt]'" in str(caught.value)
        assert "the extra tensorrt-rtx" in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")]
)
def test_a_missing_requested_builder_names_its_extra(wanted, extra, machine):
    machine([name for name in BOTH if name != wanted], "8.9")
    with pytest.raises(CompExportError, match=f"^{wanted} is not installed") as caught:
        find_tensorrt(wanted)
    assert f"[{extra}]'" in str(caught.value)


def test_a_module_that_cannot_be_imported_is_not_installed(monkeypatch, tmp_path):
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('libcudart.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with pytest.raises(CompExportError, match="tensorrt_rtx is not installed"):
        find_tensorrt("tensorrt_rtx")


def engines(**changes):
    return EngineManifest(
        **{
            "module": "tensorrt_rtx",
            "module_version": "1.7.1",
            "compute_capabilities": ("8.0", "8.9"),
            "weights": "embedded",
            "limits": Limits(),
            "cache_capacities": (272,),
            "engines": {},
            "artifact": artifact_manifest(),
            "artifact_directory": "onnx-standard-float16",
            "files": (),
        }
        | changes
    )


def test_engines_run_on_the_gpus_they_were_built_for():
    for capability in ("8.0", "8.9"):
        engines().check_runs("tensorrt_rtx", "1.7.1", capability)
    engines(module="tensorrt", module_version="10.13.0", compute_capabilities=("9.0",)).check_runs(
        "tensorrt", "10.13.0", "9.0"
    )


@pytest.mark.parametrize(
    ("local", "words"),
    [
        (
            ("tensorrt", "1.7.1", "8.9"),
            (
                "built by tensorrt_rtx 1.7.1",
                "here is tensorrt 1.7.1",
                "comp-export tensorrt --force",
            ),
        ),
        (
            ("tensorrt_rtx", "1.8.0", "8.9"),
            ("built by tensorrt_rtx 1.7.1", "here is tensorrt_rtx 1.8.0", "install that version"),
        ),
        (
            ("tensorrt_rtx", "1.7.1", "8.6"),
            (
                "compute capability 8.0, 8.9",
                "8.6",
                "comp-export tensorrt --force",
                "--compute-capability 8.6",
            ),
        ),
        (
            ("tensorrt_rtx", "1.7.1", None),
            ("compute capability 8.0, 8.9", "none here", "--backend onnxruntime"),
        ),
    ],
    ids=["module", "version", "capability", "no gpu"],
)
def test_engines_for_other_gpus_or_versions_are_refused(local, words):
    with pytest.raises(CompExportError) as caught:
        engines().check_runs(*local)
    for part in words:
        assert part in str(caught.value)


def test_a_manifest_survives_write_and_read(tmp_path):
    whole = engine_manifest(artifact_manifest(), tmp_path)
    whole.save(tmp_path)
    assert read_engine_manifest(tmp_path) == whole
    assert load_engines(tmp_path).artifact == tmp_path.parent / "onnx-standard-float16"
    (tmp_path / "manifest.json").write_text(artifact_manifest().model_dump_json())
    with pytest.raises(CompExportError, match="comp-export tensorrt --force"):
        read_engine_manifest(tmp_path)
    with pytest.raises(CompExportError, match="make one with `comp-export tensorrt`"):
        read_engine_manifest(tmp_path / "nowhere")
