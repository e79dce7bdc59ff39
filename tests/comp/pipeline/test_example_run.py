"""The example run in the package: whole, made by today's options, and copied as a run like any other."""

import json

import pytest

from comp.checkpoints.dense_model import described
from comp.checkpoints.locate import resolve_model
from comp.errors import CompExportError
from comp.pipeline.defaults import facts_of, request_of
from comp.pipeline.example_run import COPIED, copy_example, example_run, is_copied
from comp.pipeline.options import PruneOptions
from comp.pipeline.request import as_json
from comp.runs import RunDirectory, open_run

MIB = 1 << 20


@pytest.fixture
def example():
    return example_run("tiny-llava", 0.62, 0)


@pytest.mark.parametrize(
    ("model", "rate", "seed"),
    [("tiny-llava", 0.5, 0), ("tiny-llava", 0.62, 1), ("tiny-clip", 0.62, 0), ("../x", 0.62, 0)],
)
def test_other_models_rates_and_seeds_have_none(model, rate, seed):
    assert example_run(model, rate, seed) is None


def test_it_is_small_recovered_and_of_the_embedded_model(example):
    size = sum(file.stat().st_size for file in example.path.rglob("*") if file.is_file())
    assert size <= 12 * MIB
    record, plan = example.read_record(), example.load_plan()
    assert record["rate"] == plan.rate == pytest.approx(0.62, abs=0.005)
    assert record["macs"]["compressed"] == plan.macs
    dense = described("tiny-llava", resolve_model("tiny-llava"))
    assert {key: record[key] for key in dense} == dense
    report = json.loads((example.reports / "eval.json").read_text())
    readme = (example.path / "README.md").read_text(encoding="utf-8")
    for which in ("dense", "compressed"):
        assert f"{100 * report[which]['accuracy']:.1f} %" in readme
    assert report["compressed"]["accuracy"] >= 0.9
    assert report["compressed"]["n"] == report["dense"]["n"] == 600


def test_its_readme_has_its_command(example):
    given = {"model", "rate", *example.read_record()["options"]}
    defaults = PruneOptions.of(model="tiny-llava", rate=0.62).recorded()
    options = example.read_record()["options"]
    changed = {name: options[name] for name in given if options[name] != defaults[name]}
    words = "".join(
        f" --{name.replace('_', '-')} {changed[name]}" for name in sorted(changed, reverse=True)
    )
    readme = (example.path / "README.md").read_text(encoding="utf-8")
    assert f"comp-export prune --model tiny-llava --rate 0.62{words}\n" in readme


def test_its_options_make_its_request_today(example):
    record = example.read_record()
    options = PruneOptions.of(**record["options"])
    assert as_json(request_of(options, facts_of("tiny-llava"), on_cpu=True)) == record["request"]


def test_a_copy_is_a_run(example, tmp_path):
    run = RunDirectory(tmp_path / "runs" / "mine")
    copy_example(example, run)
    record = open_run(run.path).read_record()
    assert is_copied(record)
    assert not is_copied(example.read_record())
    assert record.pop(COPIED).startswith("tiny-llava-0.62 of comp-export ")
    assert record | {"run": "tiny-llava-0.62"} == example.read_record()
    assert record["run"] == "mine"
    assert run.load_plan() == example.load_plan()
    for file in (*example.checkpoint.iterdir(), *example.reports.iterdir()):
        copied = run.path / file.relative_to(example.path)
        assert copied.read_bytes() == file.read_bytes()
    assert (tmp_path / "runs" / "latest").resolve() == run.path
    with pytest.raises(CompExportError, match="exists: replace it with --force"):
        copy_example(example, run)
    (run.path / "onnx").mkdir()
    copy_example(example, run, force=True)
    assert not run.onnx.exists(), "artifacts of the run that it replaces"


def test_a_folder_that_is_no_run_stays(example, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(CompExportError, match=r"exists: replace it|is no run directory"):
            copy_example(example, RunDirectory(tmp_path), force)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "run.json").exists()
