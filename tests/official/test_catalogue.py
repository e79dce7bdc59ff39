"""The table of official checkpoints: documented, of the published settings, of the published sizes."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from comp.cli import cli
from comp.errors import CompExportError
from tests.official import blip
from tests.official.catalogue import CHECKPOINTS, REFUSED, covered, refused

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "your-own-model.md"
BYTES_7B = 14126854144  # of the weights of llava-1.5-7b-hf in float16, as their index says


@pytest.mark.parametrize("table", [covered(), refused()], ids=["covered", "refused"])
def test_the_page_has_the_table(table):
    assert f"\n{table}\n" in PAGE.read_text(encoding="utf-8")


def test_ids_and_spellings_are_named_once():
    ids = [official.hub_id for official in CHECKPOINTS] + [each.hub_id for each in REFUSED]
    assert len(set(ids)) == len(ids)
    for official in CHECKPOINTS:
        names = [spelling.name for spelling in official.spellings]
        assert len(set(names)) == len(names)


def test_every_kind_goes_through_every_command():
    """At least one of each family, task and size of a tower."""
    kinds = defaultdict(list)
    for official in CHECKPOINTS:
        width = official.spellings[0].config["vision_config"]["hidden_size"]
        each = any(spelling.every_verb for spelling in official.spellings)
        kinds[official.family, official.task, width].append(each)
    assert all(any(actual) for actual in kinds.values()), kinds


@pytest.mark.parametrize("hub_id", blip.PUBLISHED_SHA256)
def test_settings_equal_the_published_files(hub_id):
    """Written as transformers writes them, these files have the published SHA-256."""
    (official,) = (each for each in CHECKPOINTS if each.hub_id == hub_id)
    for name, digest in blip.PUBLISHED_SHA256[hub_id].items():
        text = json.dumps(official.spellings[0].files[name], indent=2, sort_keys=True) + "\n"
        assert hashlib.sha256(text.encode()).hexdigest() == digest, name


def test_every_spelling_has_the_published_size(tmp_path):
    """Of the published size, read by ``flops`` from the configuration alone."""
    actual = defaultdict(list)
    for official in CHECKPOINTS:
        for spelling in official.spellings:
            (tmp_path / "config.json").write_text(json.dumps(spelling.config))
            words = ["flops", "--model", str(tmp_path), "--text-tokens", "16", "--json"]
            result = CliRunner().invoke(cli, words, catch_exceptions=False)
            actual[official.hub_id].append(json.loads(result.stdout))
    for hub_id, reports in actual.items():
        assert all(report == reports[0] for report in reports), hub_id
    assert 2 * actual["llava-hf/llava-1.5-7b-hf"][0]["params"] == BYTES_7B


@pytest.mark.parametrize("verb", ["flops", "prune"])
@pytest.mark.parametrize(
    ("each", "config"),
    [
        pytest.param(each, config, id=f"{each.hub_id.rpartition('/')[2]}, {config['model_type']}")
        for each in REFUSED
        for config in each.configs
    ],
)
def test_unsupported_checkpoints_are_refused_by_name(each, config, verb, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    words = [verb, "--model", str(tmp_path)]
    if verb == "prune":
        words += ["--rate", "0.3", "--recover", "none", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, CompExportError), result.output
    assert each.message in str(result.exception)
    assert not (tmp_path / "run").exists()
