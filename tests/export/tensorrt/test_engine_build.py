"""Engines built on the CPU by TensorRT for RTX, and failures of a build."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from comp.errors import CompExportError
from comp.plan import BlockPlan, PruningPlan
from comp.runs import RUN_VERSION
from export.artifact.load import read_manifest
from export.commands import tensorrt as command_module
from export.commands.tensorrt import command as tensorrt_command
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.build import engine as build_module
from export.tensorrt.build.directory import build_engines
from export.tensorrt.build.engine import BuildOptions, build_engine
from export.tensorrt.build.llava_profiles import cache_capacities, engine_graphs
from export.tensorrt.build.profiles import EngineGraph
from export.tensorrt.library import TensorRT, find_tensorrt
from export.tensorrt.limits import Limits
from export.tensorrt.manifest import load_engines
from export.tensorrt.names import engine_directory
from export.weights.slim import write_slim_checkpoint
from serve.commands.onnx import command as onnx_command
from tests.export.damage import assert_damage_is_refused
from tests.export.manifests import artifact_manifest
from tests.export.tiny import make_plan, save_checkpoint, tiny_config, tiny_model

pytest.importorskip("tensorrt_rtx")
# A warning of TensorRT's own, for every Python class derived from one of its classes.
pytestmark = pytest.mark.filterwarnings("ignore:Use del obj instead:DeprecationWarning")

LIMITS = Limits(max_batch=2, images=1, max_prompt=16, max_new_tokens=8)
ADA = BuildOptions(("8.9",))
DROPS = ((1, 0.5, 0.8), (2, 0.333, 0.6))
LAYERS, TOWER_LAYERS = 3, 2  # the last of the tower's three is not used
HALF = ("float16", "bfloat16")
FORMS = [(p, pruned) for p in (*HALF, "float32") for pruned in (False, True)]
STUCK = 120  # seconds; the command takes a few


def fusable(layers=LAYERS, **changes):
    """Heads of 16 in both parts: the fused kernels want whole sixteens."""
    return tiny_config(
        kv_heads=2, layers=layers, text_hidden_size=64, vision_hidden_size=48, **changes
    )


@pytest.fixture(scope="module")
def tensorrt():
    return find_tensorrt("tensorrt_rtx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tiny_model(fusable()), tmp_path_factory.mktemp("fusable") / "model")


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory):
    """An artifact directory of a precision, dense or pruned; each is exported once."""
    home, made = tmp_path_factory.mktemp("artifacts"), {}

    def export(precision="float16", pruned=False, flavour="standard"):
        key = (precision, pruned, flavour)
        if key not in made:
            made[key] = home / "-".join(map(str, key))
            plan = make_plan(fusable(), DROPS, vision=True, seed=4) if pruned else None
            origin = Origin.of_plan(plan) if plan else Origin("tiny")
            export_artifact(checkpoint, made[key], origin, Target(flavour, precision), plan)
        return made[key]

    return export


@pytest.fixture(scope="module")
def engines(tensorrt, artifact, tmp_path_factory):
    """An engine directory of a precision, dense or pruned; each is built once."""
    home, made = tmp_path_factory.mktemp("engines"), {}

    def build(precision="float16", pruned=False):
        key = (precision, pruned)
        if key not in made:
            made[key] = home / f"{precision}-{pruned}"
            build_engines(tensorrt, artifact(*key), made[key], LIMITS, ADA)
        return made[key]

    return build


def decoder_graph(artifact) -> EngineGraph:
    return engine_graphs(read_manifest(artifact), LIMITS)[-1]


@pytest.mark.parametrize(("precision", "pruned"), FORMS)
def test_engines_match_the_manifest(precision, pruned, engines, artifact, tensorrt):
    directory = engines(precision, pruned)
    manifest = load_engines(directory).manifest  # with hashes
    source = read_manifest(artifact(precision, pruned))
    assert (manifest.module, manifest.module_version) == ("tensorrt_rtx", tensorrt.version)
    assert manifest.compute_capabilities == ("8.9",)
    assert manifest.weights == "embedded"
    assert manifest.limits == LIMITS
    assert manifest.cache_capacities == cache_capacities(source, LIMITS)
    assert len(manifest.cache_capacities) == (3 if pruned else 1)
    assert manifest.artifact == source
    assert manifest.artifact_directory == artifact(precision, pruned).name
    assert manifest.verified is None
    assert list(manifest.engines) == ["vision_encoder", "embed_tokens", "decoder"]
    names = [f"{name}.engine" for name in manifest.engines]
    assert {path.name for path in directory.iterdir()} == {
        *names, "tokenizer.json", "manifest.json",
    }  # fmt: skip
    assert all((directory / name).stat().st_size > 1000 for name in names)
    tokenizer = artifact(precision, pruned) / "tokenizer.json"
    assert (directory / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


@pytest.mark.parametrize(("precision", "pruned"), FORMS)
def test_attention_is_fused_in_half_precision_and_caches_are_written_in_place(
    precision, pruned, engines
):
    blocks = {
        name: engine.blocks
        for name, engine in load_engines(engines(precision, pruned)).manifest.engines.items()
    }
    assert [block.block for block in blocks["decoder"]] == [f"layers.{n}" for n in range(LAYERS)]
    assert [block.block for block in blocks["vision_encoder"]] == [
        f"layers.{n}" for n in range(TOWER_LAYERS)
    ]
    assert blocks["embed_tokens"] == ()
    form = "fused" if precision in HALF else "decomposed"
    for block in (*blocks["decoder"], *blocks["vision_encoder"]):
        assert block.attention == form
    assert [block.caches_in_place for block in blocks["decoder"]] == [2] * LAYERS
    assert [block.caches_in_place for block in blocks["vision_encoder"]] == [0] * TOWER_LAYERS


@pytest.mark.parametrize("pruned", [False, True])
def test_profiles_give_every_input_its_shapes(pruned, engines, artifact):
    manifest = load_engines(engines("float16", pruned)).manifest
    for engine in manifest.engines.values():
        graph = onnx.load(artifact("float16", pruned) / engine.graph, load_external_data=False)
        for profile in engine.profiles:
            assert set(profile.shapes) == {value.name for value in graph.graph.input}
    decoder = {profile.name: profile.shapes for profile in manifest.engines["decoder"].profiles}
    assert list(decoder) == ["prefill", "decode"]
    prefill, decode = decoder["prefill"], decoder["decode"]
    assert prefill["vision_positions"] == ((1, 0), (1, 16), (2, 16))
    assert prefill["text_positions"] == ((1, 1), (1, 8), (2, 16))
    assert prefill["inputs_embeds"] == ((1, 1, 64), (1, 24, 64), (2, 32, 64))
    assert decode["vision_positions"] == ((1, 0), (1, 0), (2, 0))
    assert decode["position_ids"][:2] == ((1, 1), (1, 1))
    segments = (0, 1, 2) if pruned else (0, 0, 0)
    heads = manifest.artifact.decoder.num_key_value_heads
    for layer, segment in enumerate(segments):
        places = manifest.cache_capacities[segment]
        smallest, usual, largest = prefill[f"past_key_values.{layer}.key"]
        assert smallest == usual == (1, heads[layer], places, 16)
        assert largest == (2, heads[layer], places, 16)
        assert decode[f"past_key_values.{layer}.value"] == (smallest, usual, largest)
    pixels = manifest.engines["vision_encoder"].profiles[0].shapes["pixel_values"]
    assert pixels == ((1, 3, 56, 56), (1, 3, 56, 56), (2, 3, 56, 56))


def test_damaged_engines_are_refused_by_name(engines, tmp_path):
    directory = engines()
    names = [entry.name for entry in load_engines(directory).manifest.files]
    assert set(names) == {
        "vision_encoder.engine", "embed_tokens.engine", "decoder.engine", "tokenizer.json",
    }  # fmt: skip
    assert_damage_is_refused(
        directory, names, load_engines, "comp-export tensorrt --force", tmp_path
    )


def with_builder(tensorrt, build):
    """TensorRT whose builder does ``build(builder, network, config)`` instead."""

    class Builder(tensorrt.module.Builder):
        def build_serialized_network(self, network, config):
            return build(super(), network, config)

    return replace(tensorrt, module=SimpleNamespace(**vars(tensorrt.module) | {"Builder": Builder}))


def recording(tensorrt, configs):
    def build(builder, network, config):
        configs.append(config)
        return builder.build_serialized_network(network, config)

    return with_builder(tensorrt, build)


def failing(tensorrt, *messages):
    """Return a TensorRT whose build fails: it logs the reason and returns nothing."""
    severity = tensorrt.module.ILogger.Severity

    def build(builder, network, config):
        builder.logger.log(severity.WARNING, "of no matter")
        for message in messages:
            builder.logger.log(severity.ERROR, message)

    return with_builder(tensorrt, build)


def plan_of_heads(config, kept, drops) -> PruningPlan:
    """Return a plan that keeps the first KV heads of each block, and all channels."""
    text = config.text_config
    blocks = tuple(
        BlockPlan(
            part="language",
            index=index,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            intermediate_size=text.intermediate_size,
            kept_key_value_heads=tuple(range(count)),
            kept_channels=tuple(range(text.intermediate_size)),
        )
        for index, count in enumerate(kept)
    )
    return make_plan(config, drops).model_copy(update={"blocks": blocks})


@pytest.mark.parametrize(
    ("kv_heads", "kept", "drops"),
    [
        (4, (4, 3, 2), ((1, 0.5, 0.8),)),
        (2, (1, 2, 1), ((1, 0.5, 0.8), (2, 0.333, 0.6))),
        (1, (1, 1, 1), ((1, 0.5, 0.8),)),
        (4, (4, 1, 4), ()),
        (4, (4, 4, 3), ((1, 0.5, 0.8), (2, 0.333, 0.5))),
        (2, (2, 2, 1), ((1, 0.5, 0.3),)),
    ],
)
def test_attention_is_fused_for_any_kept_heads(kv_heads, kept, drops, tensorrt, tmp_path):
    """4 query heads of 16 on some KV heads, of which a plan keeps a part; two drops may follow."""
    config = tiny_config(kv_heads=kv_heads, layers=3, text_hidden_size=64)
    checkpoint = save_checkpoint(tiny_model(config), tmp_path / "model")
    plan = plan_of_heads(config, kept, drops)
    source = tmp_path / "onnx"
    export_artifact(checkpoint, source, Origin.of_plan(plan), Target("standard", "float16"), plan)
    built = build_engine(tensorrt, source, decoder_graph(source), ADA)
    assert [block.attention for block in built.blocks] == ["fused"] * 3
    assert [block.caches_in_place for block in built.blocks] == [2] * 3


def test_streamed_weights_are_built_for_streaming(tensorrt, artifact, tmp_path):
    streaming = tensorrt.module.BuilderFlag.WEIGHT_STREAMING
    for weights in ("embedded", "streamed"):
        configs, options = [], replace(ADA, weights=weights)
        manifest = build_engines(
            recording(tensorrt, configs), artifact(), tmp_path / weights, LIMITS, options
        )
        assert manifest.weights == weights
        load_engines(tmp_path / weights)
        assert [config.get_flag(streaming) for config in configs] == [weights == "streamed"] * 3


def test_one_engine_is_built_for_several_gpus(tensorrt, artifact, tmp_path):
    configs, wanted = [], ("8.0", "8.9", "12.0")
    manifest = build_engines(
        recording(tensorrt, configs),
        artifact(pruned=True),
        tmp_path / "out",
        LIMITS,
        BuildOptions(wanted),
    )
    assert manifest.compute_capabilities == wanted
    load_engines(tmp_path / "out")
    assert len(configs) == 3
    for config in configs:
        names = [
            config.get_compute_capability(n).name for n in range(config.num_compute_capabilities)
        ]
        assert names == ["SM80", "SM89", "SM120"]
    for capability in wanted:
        manifest.check_runs("tensorrt_rtx", tensorrt.version, capability)


def test_a_second_build_replaces_all_and_reports_each_phase(tensorrt, artifact, tmp_path):
    out, reported = tmp_path / "out", []
    out.mkdir()
    (out / "stale.engine").write_bytes(b"stale")
    build_engines(tensorrt, artifact(), out, LIMITS, ADA, lambda *words: reported.append(words))
    assert not (out / "stale.engine").exists()
    assert load_engines(out).file("decoder") == out / "decoder.engine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    begun = [engine for engine, phase in reported if not phase]
    assert begun == ["vision_encoder", "embed_tokens", "decoder"]
    for engine in begun:
        assert (engine, "Building engine") in reported


def refused(tensorrt, source, out, match):
    """Building raises, and existing files are unchanged."""
    out.mkdir(exist_ok=True)
    (out / "old.engine").write_bytes(b"old")
    with pytest.raises(CompExportError, match=match) as caught:
        build_engines(tensorrt, source, out, LIMITS, ADA)
    assert (out / "old.engine").read_bytes() == b"old"
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    return str(caught.value)


def test_other_artifacts_are_refused(tensorrt, artifact, tmp_path):
    out = tmp_path / "out"
    message = refused(tensorrt, artifact(flavour="onnxruntime"), out, "onnxruntime flavour")
    assert "comp-export onnx --flavour standard --precision float16" in message
    copy = tmp_path / "copy"
    shutil.copytree(artifact(), copy)
    read_manifest(copy).model_copy(update={"family": "flamingo"}).save(copy)
    assert "knows llava" in refused(tensorrt, copy, out, "family is .flamingo.")
    read_manifest(artifact()).save(copy)
    data = copy / "decoder_model.onnx.data"
    data.write_bytes(b"?" + data.read_bytes()[1:])
    refused(tensorrt, copy, out, r"decoder_model\.onnx\.data is corrupted")
    message = refused(tensorrt, tmp_path / "nowhere", out, "no artifact at")
    assert "comp-export onnx" in message


def test_operators_of_other_domains_are_refused(tensorrt, artifact):
    source = artifact(flavour="onnxruntime")
    graph = EngineGraph("decoder", "decoder_model.onnx", ())
    with pytest.raises(CompExportError, match=r"operators of com\.microsoft") as caught:
        build_engine(tensorrt, source, graph, ADA)
    assert "decoder_model.onnx" in str(caught.value)
    assert "--flavour standard" in str(caught.value)


def test_a_file_other_than_a_graph_is_refused(tensorrt, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"no graph at all")
    for name in ("graph.onnx", "missing.onnx"):
        with pytest.raises(CompExportError, match="cannot be read as ONNX") as caught:
            build_engine(tensorrt, tmp_path, EngineGraph("graph", name, ()), ADA)
        assert name in str(caught.value)
        assert "comp-export onnx --flavour standard --force" in str(caught.value)


def test_an_unparsable_node_is_named(tensorrt, tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    node = helper.make_node("Unheard", ["x"], ["y"], name="layers.0/Unheard")
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])),
        tmp_path / "graph.onnx",
    )
    with pytest.raises(CompExportError, match=r"node 'layers\.0/Unheard' \(Unheard\)") as caught:
        build_engine(tensorrt, tmp_path, EngineGraph("graph", "graph.onnx", ()), ADA)
    assert f"tensorrt_rtx {tensorrt.version} cannot parse" in str(caught.value)


def test_heads_without_a_fused_kernel_are_refused(tensorrt, tmp_path):
    """Heads of 8 are refused, instead of computing attention in another way."""
    checkpoint = save_checkpoint(tiny_model(fusable(layers=1, text_head_dim=8)), tmp_path / "model")
    source = tmp_path / "onnx"
    export_artifact(checkpoint, source, Origin("tiny"), Target("standard", "float16"))
    message = refused(tensorrt, source, tmp_path / "out", r"cannot build .*decoder_in_place\.onnx")
    assert "Attention" in message
    assert "try another --precision" in message
    float32 = tmp_path / "float32"
    export_artifact(checkpoint, float32, Origin("tiny"), Target("standard", "float32"))
    manifest = build_engines(tensorrt, float32, tmp_path / "out", LIMITS, ADA)
    assert manifest.engines["decoder"].blocks[0].attention == "decomposed"


@pytest.mark.parametrize(
    "log",
    [
        "[x.cpp::allocate::206] Error Code 2: OutOfMemory (Requested size was 67258879 bytes.)",
        "Unexpected exception std::bad_alloc",
        "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (out of memory)",
    ],
)
def test_out_of_memory_names_the_limits_to_lower(log, tensorrt, artifact):
    """The first two are from builds with too little memory; it need not be the first error."""
    with pytest.raises(CompExportError, match="out of memory while building") as caught:
        build_engine(failing(tensorrt, "first", log), artifact(), decoder_graph(artifact()), ADA)
    for words in ("decoder_in_place.onnx", "--max-batch", "--max-prompt", "--max-new-tokens"):
        assert words in str(caught.value)


def test_a_memory_error_names_the_limits_to_lower(tensorrt, artifact):
    def exhausted(builder, network, config):
        raise MemoryError

    with pytest.raises(CompExportError, match=r"out of memory while building .*lower --max"):
        build_engine(with_builder(tensorrt, exhausted), artifact(), decoder_graph(artifact()), ADA)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["  Error Code 4:\n  no kernel ", "and so on"], "Error Code 4: no kernel;"),
        ([], "no reason"),
    ],
)
def test_other_build_failures_give_their_reason(messages, reason, tensorrt, artifact):
    with pytest.raises(CompExportError, match=reason) as caught:
        build_engine(failing(tensorrt, *messages), artifact(), decoder_graph(artifact()), ADA)
    assert "out of memory" not in str(caught.value)
    assert "decoder_in_place.onnx" in str(caught.value)


@pytest.mark.parametrize("failure", [MemoryError, None])
def test_a_failed_build_keeps_no_tensorrt_objects(failure, tensorrt, artifact):
    """An object that is collected in a callback of the next build would deadlock on its lock."""
    alive = []

    def failed(builder, network, config):
        alive.extend(weakref.ref(each) for each in (builder.__self__, network, config))
        if failure is not None:
            raise failure

    gc.disable()  # removed without the collector
    try:
        with pytest.raises(CompExportError, match=r"building|cannot build") as caught:
            build_engine(with_builder(tensorrt, failed), artifact(), decoder_graph(artifact()), ADA)
        assert [each() for each in alive] == [None] * 3
    finally:
        gc.enable()
    assert "decoder_in_place.onnx" in str(caught.value)


@pytest.fixture
def interruptible():
    """Ctrl-C raises ``KeyboardInterrupt``, even where the tests were started without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_stops_the_build(tensorrt, artifact, interruptible):
    """TensorRT stops at its next step; without an interrupt it goes through many phases."""
    graph, whole, cut = decoder_graph(artifact()), [], []
    build_engine(tensorrt, artifact(), graph, ADA, whole.append)

    def interrupt(phase):
        cut.append(phase)
        if len(cut) == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(tensorrt, artifact(), graph, ADA, interrupt)
    assert cut[:2] == whole[:2]
    assert len(cut) < len(whole) / 2


def test_an_interrupt_inside_the_logger_stops_the_build(
    tensorrt, artifact, interruptible, monkeypatch
):
    """TensorRT drops exceptions of its callbacks: they must not run where Ctrl-C is raised."""
    make_logger, spoken = build_module._logger, []

    def interrupted_logger(tensorrt):
        class Interrupting(type(make_logger(tensorrt))):
            def log(self, severity, message):
                spoken.append(message)
                if len(spoken) == 1:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                super().log(severity, message)

        return Interrupting()

    monkeypatch.setattr(build_module, "_logger", interrupted_logger)
    with pytest.raises(KeyboardInterrupt):
        build_engine(tensorrt, artifact(), decoder_graph(artifact()), ADA)


def test_measured_kernels_are_kept_for_the_next_build(tmp_path):
    """Applies only where building measures: a cache that the GPU refuses is started again."""

    class Config:
        def __init__(self, accepted):
            self.accepted, self.found = accepted, None

        def create_timing_cache(self, content):
            return content

        def set_timing_cache(self, content, ignore_mismatch):
            assert not ignore_mismatch
            self.found = content
            return content in self.accepted

        def get_timing_cache(self):
            return SimpleNamespace(serialize=lambda: self.found + b"+")

    cache, data_centre = tmp_path / "timing.cache", TensorRT("tensorrt", SimpleNamespace(), "10")
    for accepted, expected in (([b""], b"+"), ([b"", b"+"], b"++"), ([b""], b"+")):
        config = Config(accepted)
        build_module._TimingCache.load(data_centre, config, cache).save(config)
        assert cache.read_bytes() == expected
    cache.unlink()
    ahead = TensorRT("tensorrt_rtx", SimpleNamespace(), "1.7")
    for tensorrt, path in ((ahead, cache), (data_centre, None)):
        build_module._TimingCache.load(tensorrt, Config([]), path).save(Config([]))
    assert not cache.exists()


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with standard artifacts in float16, slim and dense."""
    return make_run(tmp_path_factory.mktemp("runs"))


def make_run(home, layers=LAYERS):
    config = fusable(layers)
    dense = save_checkpoint(tiny_model(config, seed=6), home / "dense")
    plan = make_plan(config, DROPS, vision=True, seed=7, model=str(dense))
    run = home / "tiny-0.5"
    run.mkdir()
    plan.save(run / "plan.json")
    write_slim_checkpoint(dense, plan, run / "checkpoint")
    record = {"version": RUN_VERSION, "model": str(dense), "model_path": str(dense)}
    (run / "run.json").write_text(json.dumps(record))
    assert (
        invoke(onnx_command, run, "--no-check", "--flavour", "standard", "--precision", "float16")[
            0
        ]
        == 0
    )
    return run


def invoke(command, *words):
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.stdout


@pytest.fixture
def no_gpu(monkeypatch):
    for module in ("export.tensorrt.gpu", "export.tensorrt.library"):
        monkeypatch.setattr(f"{module}.gpu_capability", lambda: None)


SMALL = ("--max-prompt", 16, "--max-new-tokens", 8, "--compute-capability", "8.9")


def test_the_command_builds_slim_and_dense(run, no_gpu, capfd):
    status, text = invoke(tensorrt_command, run, *SMALL, "--max-batch", 2, "--json")
    assert status == 0
    assert capfd.readouterr().out == ""  # TensorRT's own messages do not appear
    report = json.loads(text)
    assert report["run"] == str(run)
    assert list(report["engines"]) == ["tensorrt", "tensorrt-dense"]
    for name, actual in report["engines"].items():
        engines = load_engines(run / name)
        assert actual["directory"] == str(run / name)
        assert actual["bytes"] == engines.manifest.size_bytes > 0
        assert (actual["module"], actual["precision"]) == ("tensorrt_rtx", "float16")
        assert actual["compute_capabilities"] == ["8.9"]
        assert actual["weights"] == "embedded"
        assert actual["limits"] == LIMITS.model_dump()
        assert actual["cache_capacities"] == list(engines.manifest.cache_capacities)
        assert len(actual["engines"]["decoder"]["blocks"]) == LAYERS
        assert engines.artifact.is_dir()
    assert load_engines(run / "tensorrt").manifest.artifact.rate == 0.5
    assert load_engines(run / "tensorrt-dense").manifest.artifact.dense
    assert not (run / "timing.cache").exists()


def test_the_command_replaces_only_when_forced(run, no_gpu, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("tensorrt*"))
    made = copy / "tensorrt"
    made.mkdir()
    (made / "stale").touch()
    with pytest.raises(CompExportError, match="exists already: pass --force"):
        invoke(tensorrt_command, copy, *SMALL)
    assert (made / "stale").exists()
    status, text = invoke(tensorrt_command, copy, *SMALL, "--force", "--no-dense")
    assert status == 0
    assert not (made / "stale").exists()
    title, *rows = [line.split() for line in text.splitlines() if line.strip()]
    assert title[0] == "tensorrt_rtx"
    assert [row for row in rows if row[0].startswith("tensorrt")] == [rows[-1]]
    assert rows[-1][0] == "tensorrt"
    assert rows[-1][3:] == ["8.9", "5", "of", "5", "6"]


def test_the_command_names_the_export_that_is_missing(run, no_gpu, tmp_path):
    with pytest.raises(CompExportError, match="has no onnx-standard-bfloat16") as caught:
        invoke(tensorrt_command, run, *SMALL, "--precision", "bfloat16", "--force")
    message = str(caught.value)
    assert f"`comp-export onnx {run} --flavour standard --precision bfloat16`" in message
    assert "(it has onnx-dense-standard-float16, onnx-standard-float16)" in message
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("onnx*", "tensorrt*"))
    with pytest.raises(
        CompExportError, match=r"has no onnx-standard-float16: run `comp-export onnx"
    ):
        invoke(tensorrt_command, bare, *SMALL)
    shutil.copytree(run / "onnx-standard-float16", bare / "onnx-standard-float16")
    with pytest.raises(CompExportError, match="has no onnx-dense-standard-float16"):
        invoke(tensorrt_command, bare, *SMALL)
    assert not list(bare.glob("tensorrt*"))


def test_the_command_writes_other_precisions_elsewhere(run, no_gpu, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("tensorrt*"))
    flavour = ("--flavour", "standard", "--precision", "float32", "--no-dense")
    assert invoke(onnx_command, copy, "--no-check", *flavour)[0] == 0
    status, text = invoke(
        tensorrt_command, copy, *SMALL, "--precision", "float32", "--no-dense", "--json"
    )
    assert status == 0
    assert list(json.loads(text)["engines"]) == ["tensorrt-float32"]
    assert load_engines(copy / "tensorrt-float32").manifest.artifact.precision == "float32"
    assert not (copy / "tensorrt").exists()


def test_engine_directories_have_distinct_names(tmp_path):
    names = {
        (precision, dense): engine_directory(tmp_path, dense, precision).name
        for precision in (*HALF, "float32")
        for dense in (False, True)
    }
    assert len(set(names.values())) == 6
    assert names["float16", False] == "tensorrt"
    assert names["float16", True] == "tensorrt-dense"
    assert names["bfloat16", True] == "tensorrt-dense-bfloat16"
    assert engine_directory(tmp_path, False, "float32").parent == tmp_path


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--compute-capability", "ada"), "--compute-capability 'ada'"),
        (("--compute-capability", ""), "--compute-capability ''"),
        (("--compute-capability", "9.0"), r"9\.0: tensorrt_rtx .* 8\.0, 8\.6, 8\.9, 12\.0"),
        (("--weights", "stripped"), "--weights stripped: .*GPU only.*--weights streamed"),
        (("--images", 7), r"--images 7 \(112 tokens\).*the model has 128 positions"),
    ],
)
def test_the_command_refuses_unsupported_builds(words, match, run, no_gpu):
    before = sorted(run.iterdir())
    with pytest.raises(CompExportError, match=match):
        invoke(tensorrt_command, run, *SMALL, "--force", *words)
    assert sorted(run.iterdir()) == before


def test_the_command_needs_a_run(no_gpu, tmp_path):
    with pytest.raises(CompExportError, match=r"no run at .*comp-export prune"):
        invoke(tensorrt_command, tmp_path / "nowhere", *SMALL)


def test_large_weights_are_stripped_where_a_gpu_is_present(tmp_path, monkeypatch, tensorrt):
    artifact_manifest().save(tmp_path)
    wanted = {tmp_path / "out": tmp_path}
    monkeypatch.setattr(command_module, "STRIP_ABOVE", 0)
    assert command_module._weights("auto", wanted, tensorrt, "8.9") == "embedded"
    monkeypatch.setattr(command_module, "STRIP_ABOVE", -1)
    assert command_module._weights("auto", wanted, tensorrt, "8.9") == "stripped"
    assert command_module._weights("auto", wanted, tensorrt, None) == "embedded"
    assert command_module._weights("stripped", wanted, tensorrt, "8.9") == "stripped"
    assert command_module._weights("streamed", wanted, tensorrt, None) == "streamed"


def test_an_interrupted_command_leaves_nothing_half_written(tmp_path):
    """Press Ctrl-C while the decoder is built, which takes seconds with these blocks."""
    run = make_run(tmp_path, layers=12)
    old = run / "tensorrt" / "old.engine"
    old.parent.mkdir()
    old.write_bytes(b"old")
    before = sorted(run.iterdir())
    words = [sys.executable, "-m", "comp.cli", "tensorrt", run, *SMALL, "--force"]
    process = subprocess.Popen(
        [str(word) for word in (*words, "--module", "tensorrt-rtx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + STUCK
        while not list(run.glob(".tensorrt.*/embed_tokens.engine")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.5)  # past the parsing
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=STUCK)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert out == ""
    assert sorted(run.iterdir()) == before
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("ranking", ["mean_head", "next_layer", "diversity"])
def test_engines_are_built_for_every_ranking(ranking, checkpoint, tensorrt, tmp_path):
    """With no image token at the smallest: a decode step has none."""
    plan = make_plan(fusable(), DROPS, seed=4, ranking=ranking)
    source = tmp_path / "onnx"
    export_artifact(checkpoint, source, Origin.of_plan(plan), Target("standard", "float16"), plan)
    built = build_engine(tensorrt, source, decoder_graph(source), ADA)
    assert [block.attention for block in built.blocks] == ["fused"] * 3
    assert [block.caches_in_place for block in built.blocks] == [2] * 3
