"""The YAML files of a fleet, by Ray's own schema."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from serve.fleet.config import FleetConfig

ray_schema = pytest.importorskip("ray.serve.schema", reason="needs Ray: pip install -e '.[ray]'")
yaml = pytest.importorskip("yaml")
KEPT = Path(__file__).parents[3] / "docs" / "deploy" / "ray-serve.yaml"


def checked(path):
    """The application of a file and its arguments, checked by Ray and by the fleet."""
    document = ray_schema.ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = document.applications
    module, _, name = application.import_path.partition(":")
    assert hasattr(__import__(module, fromlist=[name]), name)
    return document, FleetConfig.model_validate(application.args)


def test_the_kept_file_fits_rays_schema_and_builds():
    from serve.fleet.application import build

    document, config = checked(KEPT)
    assert document.http_options.host == "127.0.0.1"
    assert config.replicas.most == 8
    assert build(config) is not None


def test_the_command_writes_such_a_file(run, tmp_path):
    out = tmp_path / "fleet.yaml"
    words = ["serve", str(run), "--ray", "--replicas", "1-3", "--gpus-per-replica", "0.5"]
    result = CliRunner().invoke(cli, [*words, "--ray-yaml", str(out), "--max-num-seqs", "8"])
    assert result.exit_code == 0, result.output
    _, config = checked(out)
    assert [Path(model.path).name for model in config.models] == ["onnx-dense", "onnx"]
    assert (config.replicas.least, config.replicas.most, config.replicas.gpus) == (1, 3, 0.5)
    assert config.replicas.target_ongoing == config.max_num_seqs == 8


def test_bad_options_are_refused(run, tmp_path):
    def refused(*words):
        result = CliRunner().invoke(cli, ["serve", str(run), *words])
        assert isinstance(result.exception, CompExportError), result.output
        return str(result.exception)

    assert "add --ray" in refused("--replicas", "2")
    assert "--replicas 4-2" in refused("--ray", "--replicas", "4-2")
    assert "--replicas many" in refused("--ray", "--replicas", "many")
