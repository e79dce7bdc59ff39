"""The time of pruning relative to plain fine-tuning: the ratio, and the whole script."""

import json

import pytest
from pruning_cost import main, row_of

from tests.comp.small import small_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The words that choose a small random LLaVA: the script's own is larger."""
    path = tmp_path_factory.mktemp("cost") / "small-llava"
    small_adapter().save(path)
    return "--model", str(path)


def test_a_variant_is_divided_by_the_same_number_of_plain_steps():
    record = {
        "seconds": {"training": 6.0, "data": 2.0, "importance": 4.0, "search": 9.0},
        "times_fine_tuning": {"whole": 3.0},  # of its own training: 24 s in all
        "steps": {"search": 3, "recovery": 5},
        "metric": {"compressed": 0.5},
    }
    row = row_of(record, [1.5, 2.5, 2.0])
    assert row["seconds"] == 24.0
    assert row["fine_tuning_seconds"] == 16.0
    assert row["times_fine_tuning"] == 1.5
    assert row["range"] == [24 / 20, 24 / 12]
    assert row["parts"] == {"training": 6 / 16, "data": 2 / 16, "importance": 4 / 16}


@pytest.mark.slow
def test_script_writes_the_report(model, tmp_path, capsys):
    out = tmp_path / "cost.json"
    small = "--stages 1 --steps-per-stage 1 --recover-steps 1 --no-reconstruction"
    small += " --calibration 4 --validation 4"
    words = [
        *model,
        "--rate",
        "0.2",
        "--prune",
        small,
        "--batch-size",
        "4",
        "--steps",
        "2",
        "--warmup",
        "1",
    ]
    assert main([*words, "--variants", "no distillation", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["rows"].keys() == {"no distillation"}
    row = report["rows"]["no distillation"]
    assert "importance" in row["parts"]
    assert "distillation" not in row["parts"]
    assert len(report["fine_tuning_step_ms"]) == 2
    assert row["steps"] == 2
    assert sum(row["parts"].values()) < row["times_fine_tuning"]
    assert set(report["statistics"]) == {"pass_without_ms", "pass_with_ms"}
    assert "no distillation" in capsys.readouterr().out


def test_a_failed_variant_ends_the_script(model, tmp_path, capsys):
    words = [*model, "--rate", "2", "--steps", "1", "--warmup", "1", "--batch-size", "2"]
    assert main([*words, "--variants", "comp", "--out", str(tmp_path / "cost.json")]) == 1
    assert "comp: " in capsys.readouterr().err
    assert not (tmp_path / "cost.json").exists()
