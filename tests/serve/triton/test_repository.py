"""A written repository: its configurations, by Triton's own definition, are those of the graphs."""

import json
from types import SimpleNamespace

import onnxruntime as ort
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from comp.cli import cli
from comp.errors import CompExportError
from export.exporter import Origin, export_artifact
from export.tensorrt.manifest import Engines
from serve.triton.config import ModelConfig, TensorConfig
from serve.triton.graphs import Running, plan_models
from serve.triton.repository import Repository, write_repository
from serve.triton.settings import GeneratorSettings
from tests.comp import small_blip, small_clip
from tests.serve.triton.conftest import SETTINGS, config_of

GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model")
TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
}


def tensors_of(config, kind):
    """Names, types and dims (with the batch that Triton adds) of a configuration."""
    batch = [-1] if config.max_batch_size else []
    return {
        each.name: (model_config_pb2.DataType.Name(each.data_type), [*batch, *each.dims])
        for each in getattr(config, kind)
        if not (kind == "input" and each.optional)
    }


def expected(ports):
    return {
        port.name: (TYPES[port.type], [d if isinstance(d, int) else -1 for d in port.shape] or [1])
        for port in ports
    }


def check_graph(directory):
    """Compare a graph's configuration with what ONNX Runtime says of the file that Triton loads."""
    config = config_of(directory)
    assert (config.name, config.backend) == (directory.name, "onnxruntime")
    model = directory / "1" / "model.onnx"
    session = ort.InferenceSession(model / "model.onnx" if model.is_dir() else model)
    assert tensors_of(config, "input") == expected(session.get_inputs())
    assert tensors_of(config, "output") == expected(session.get_outputs())
    optional = {each.name: each for each in config.input if each.optional}
    initializers = {each.name: each for each in session.get_overridable_initializers()}
    assert optional.keys() == initializers.keys()
    for name, each in optional.items():
        port = initializers[name]
        kind = model_config_pb2.DataType.Name(each.data_type)
        assert {name: (kind, list(each.dims))} == expected([port])
    assert not (optional and config.max_batch_size), "the backend refuses both together"
    return config


@pytest.mark.parametrize("model", ["tiny", "tiny-0.4"])
def test_the_graphs_of_a_llava_have_the_tensors_of_their_files(repository, model):
    configs = {name: check_graph(repository / f"{model}-{name}") for name in GRAPHS}
    assert configs["vision_encoder"].max_batch_size == 16
    assert configs["vision_encoder"].HasField("dynamic_batching")
    assert configs["decoder_model"].max_batch_size == 0
    for config in configs.values():
        (group,) = config.instance_group
        assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
        assert config.parameters["intra_op_thread_count"].string_value == "1"
    config = config_of(repository / model)
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert config.model_transaction_policy.decoupled
    assert [each.name for each in config.input if not each.optional] == ["text_input"]
    names = {each.name for each in repository.iterdir()}
    assert names == {
        f"{m}{end}" for m in ("tiny", "tiny-0.4") for end in ("", *map("-{}".format, GRAPHS))
    }


def test_files_of_a_model_are_stored_once(repository):
    weights = repository / "tiny-decoder_model/1/model.onnx"
    weights = weights / "model.onnx" if weights.is_dir() else weights
    assert weights.samefile(repository / "tiny/1/artifact/decoder_model.onnx")
    links = [path for path in repository.rglob("*") if path.is_symlink()]
    assert not links, "a repository is complete in itself"


@pytest.mark.parametrize("task", ["clip", "question"])
def test_the_graphs_of_encoders_have_the_tensors_of_their_files(tmp_path, task):
    if task == "clip":
        model, plan = small_clip.random_clip(2), small_clip.random_plan(2)
    else:
        model = small_blip.random_blip(task, seed=2)
        plan = small_blip.random_plan(model, seed=2)
    model.save(tmp_path / "dense")
    export_artifact(tmp_path / "dense", tmp_path / "onnx", Origin.of_plan(plan), plan=plan)
    artifacts = [(task, tmp_path / "onnx")]
    out = tmp_path / "repository"
    write_repository(Repository(artifacts, "graphs", Running("cpu"), SETTINGS), out)
    configs = {path.name: check_graph(path) for path in out.iterdir()}
    batched = {name for name, config in configs.items() if config.max_batch_size == 16}
    assert configs.keys() - batched == ({"question-decoder_model"} if task == "question" else set())
    if task == "clip":
        with pytest.raises(CompExportError, match="generates no text: pass --models graphs"):
            write_repository(
                Repository(artifacts, "generate", Running("cpu"), SETTINGS), tmp_path / "no"
            )


def test_a_configuration_is_escaped_and_on_the_first_gpu():
    tensor = TensorConfig('a "b"\\', "TYPE_FP16", (-1, 3))
    model = ModelConfig("m", "onnxruntime", "cuda", [tensor], parameters={"a": 'x\n"'}, instances=2)
    config = text_format.Parse(model.text(), model_config_pb2.ModelConfig())
    assert config.input[0].name == 'a "b"\\'
    assert config.parameters["a"].string_value == 'x\n"'
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (2, [0])
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_settings_are_read_back_from_the_configuration():
    chosen = GeneratorSettings(3, 4, 100, 0.25, 0.0, 2_000_000, 0, 5, 6)
    config = {"parameters": {k: {"string_value": v} for k, v in chosen.parameters().items()}}
    assert GeneratorSettings.of_config(json.dumps(config)) == chosen
    assert GeneratorSettings.of_config("{}") == GeneratorSettings()
    for word in ("many", "-1", "nan"):
        with pytest.raises(CompExportError, match="cache_memory"):
            GeneratorSettings.of_config(
                json.dumps({"parameters": {"cache_memory": {"string_value": word}}})
            )


def refused(*arguments):
    result = CliRunner().invoke(cli, ["triton", *map(str, arguments)])
    assert isinstance(result.exception, CompExportError), result.output
    return str(result.exception)


def test_the_command_writes_a_run_and_refuses_what_triton_cannot_load(
    run, dense_artifact, tmp_path
):
    out = tmp_path / "repository"
    written = CliRunner().invoke(cli, ["triton", str(run), "--out", str(out), "--json"])
    names = json.loads(written.stdout)["models"]
    assert sorted(names) == sorted(path.name for path in out.iterdir())
    assert len(names) == 8
    assert "exists" in refused(run, "--out", out)
    again = CliRunner().invoke(
        cli, ["triton", f"a={dense_artifact}", "--out", str(out), "--models", "generate", "--force"]
    )
    assert again.exit_code == 0, again.output
    assert [path.name for path in out.iterdir()] == ["a"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".repository")]
    other = tmp_path / "other"
    assert "no name of a model" in refused(f"a b={dense_artifact}", "--out", other)
    assert "are called a" in refused(f"a={dense_artifact}", f"a={dense_artifact}", "--out", other)
    assert "comp-export tensorrt" in refused(run, "--out", other, "--backend", "tensorrt")
    assert "--device cpu" in refused(
        run, "--out", other, "--backend", "tensorrt", "--device", "cpu"
    )
    assert not other.exists()


def test_engines_are_plans_but_for_the_decoder_that_writes_in_place(tmp_path):
    entries = {
        "vision_encoder": SimpleNamespace(file="vision.engine", graph="vision_encoder.onnx"),
        "decoder": SimpleNamespace(file="decoder.engine", graph="decoder_in_place.onnx"),
    }
    manifest = SimpleNamespace(module="tensorrt", weights="embedded", engines=entries)
    (plan,) = plan_models(Engines(tmp_path, manifest), "m", Running("cuda", instances=2))
    assert plan.files == {"model.plan": tmp_path / "vision.engine"}
    config = text_format.Parse(plan.config.text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend) == ("m-vision_encoder", "tensorrt")
    assert config.instance_group[0].count == 2
    for changed, remedy in (
        ({"module": "tensorrt_rtx"}, "--module tensorrt"),
        ({"weights": "streamed"}, "--weights embedded"),
    ):
        other = SimpleNamespace(**(vars(manifest) | changed))
        with pytest.raises(CompExportError, match=remedy):
            list(plan_models(Engines(tmp_path, other), "m", Running("cuda")))
