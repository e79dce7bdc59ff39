"""A model repository of the random LLaVA, and its generating model, started by its own ``model.py``."""

import importlib.util
import json
import sys

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from serve.triton.graphs import Running
from serve.triton.repository import Repository, write_repository
from serve.triton.settings import GeneratorSettings
from tests.serve.triton import stand_in

SETTINGS = GeneratorSettings(max_num_seqs=3, max_queue=8, threads=1, max_images=2)


def config_of(directory):
    """The configuration of a model as Triton parses it."""
    text = (directory / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def started(directory, **changed):
    """The Python model of a directory, as Triton's Python backend starts it."""
    config = json_format.MessageToDict(config_of(directory), preserving_proto_field_name=True)
    for name, value in changed.items():
        config["parameters"][name] = {"string_value": str(value)}
    spec = importlib.util.spec_from_file_location("triton_model", directory / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["triton_python_backend_utils"] = stand_in
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["triton_python_backend_utils"]
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_repository": str(directory),
            "model_version": "1",
            "model_name": directory.name,
        }
    )
    return model


@pytest.fixture(scope="session")
def repository(dense_artifact, compressed_artifact, tmp_path_factory):
    out = tmp_path_factory.mktemp("triton") / "repository"
    artifacts = [("tiny", dense_artifact), ("tiny-0.4", compressed_artifact)]
    write_repository(Repository(artifacts, "all", Running("cpu", threads=1), SETTINGS), out)
    return out


@pytest.fixture(scope="session")
def generating(repository):
    model = started(repository / "tiny-0.4")
    yield model
    model.finalize()
