"""``comp-export inspect --figures`` as a user runs it, on runs of a small random CLIP."""

import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from comp.cli import cli
from comp.errors import CompExportError
from comp.figures.report import InsightOptions, dense_model
from comp.runs import open_run
from tests.comp.small_clip import random_clip

QUICK = ("--stages", "2", "--steps-per-stage", "1", "--recover-steps", "1", "--batch-size", "4")
QUICK += ("--calibration", "4", "--validation", "4", "--dtype", "float32", "--device", "cpu")
OF_THE_RUN = ["trajectory", "shares", "structure"]
OF_THE_MODEL = ["overlap", "rank-stability"]


def call(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def inspected(run, *words):
    return call("inspect", run, "--figures", "--samples", "2", "--device", "cpu", *words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    random_clip(2).save(folder / "dense")
    result = call(
        "prune", "--model", folder / "dense", "--rate", "0.4", "--out", folder / "run", *QUICK
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def drawn(made, tmp_path_factory):
    """The run with its figures, drawn over those of an earlier call, and the command's output."""
    run = tmp_path_factory.mktemp("drawn") / "run"
    shutil.copytree(made / "run", run)
    (run / "figures").mkdir()
    (run / "figures" / "figures.json").write_text("{}")
    (run / "figures" / "old.png").write_bytes(b"of an earlier call")
    return run, inspected(run)


def numbers_of(run):
    return json.loads((run / "figures" / "figures.json").read_text())


def test_figures_and_their_numbers(drawn):
    run, result = drawn
    assert result.exit_code == 0, result.output
    names = [*OF_THE_RUN, *OF_THE_MODEL]
    for name in names:
        path = run / "figures" / f"{name}.png"
        assert f"figure: {path}" in result.stderr
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 250
    written = {path.name for path in (run / "figures").iterdir()}
    assert written == {"figures.json", *(f"{name}.png" for name in names)}
    for words in ("finalising", "vision.0 heads", "language.2 channels", "with CIT", "FLOPs left"):
        assert words in result.stdout
    record = numbers_of(run)
    assert record["missing"] == {}
    assert sum(share["share"] for share in record["shares"]) == pytest.approx(1)
    plan = open_run(run).load_plan()
    assert sum(share["macs"] for share in record["shares"]) == plan.macs_dense - plan.macs
    assert record["overlap"]["samples"] == record["rank-stability"]["samples"] == 2
    stages = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    assert record["trajectory"] == stages


def test_json_is_reproducible_except_for_the_random_heads(drawn, run, tmp_path):
    result = inspected(run, "--json", "--out", tmp_path / "elsewhere", "--seed", "7")
    actual = json.loads(result.stdout)
    assert [path.rpartition("/")[2] for path in actual["figures"]] == [
        f"{name}.png" for name in (*OF_THE_RUN, *OF_THE_MODEL)
    ]
    assert actual["missing"] == {}
    assert not (run / "figures").exists()
    earlier, now = numbers_of(drawn[0]), actual["numbers"]
    assert now["overlap"] == earlier["overlap"]
    for heads, same in (("run", True), ("random", False)):
        both = [
            [layer for layer in numbers["rank-stability"]["layers"] if layer["heads"] == heads]
            for numbers in (earlier, now)
        ]
        assert (both[0] == both[1]) == same


def test_own_data(drawn, run, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    lines = [{"image": "a.png", "caption": f"a red picture {number}"} for number in range(2)]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert inspected(run, "--data", data).exit_code == 0
    assert numbers_of(run)["overlap"] != numbers_of(drawn[0])["overlap"]
    result = inspected(run, "--data", data, "--samples", 3)
    assert result.exit_code == 1
    assert "holds 2 examples, and 3 are requested: pass --samples 2" in str(result.exception)
    assert not (run / "figures" / "overlap.png").exists()  # nothing of the earlier call is left


def without_the_dense_model(run):
    record = json.loads((run / "run.json").read_text())
    record["model"] = record["model_path"] = str(run / "gone" / "dense")
    (run / "run.json").write_text(json.dumps(record))


def test_without_the_dense_model_the_others_are_drawn(run):
    without_the_dense_model(run)
    result = inspected(run)
    assert result.exit_code == 1
    assert isinstance(result.exception, CompExportError)
    assert "which is no longer at" in str(result.exception)
    assert "say where it is now with --model" in str(result.exception)
    assert {path.stem for path in (run / "figures").iterdir()} == {*OF_THE_RUN, "figures"}
    assert "finalising" in result.stdout
    assert set(numbers_of(run)["missing"]) == set(OF_THE_MODEL)


def test_figures_need_the_dense_model_of_the_run(run, made):
    without_the_dense_model(run)
    opened = open_run(run)
    plan = opened.load_plan()
    assert dense_model(opened, plan, InsightOptions(1, model=str(made / "dense"))).name == "clip"
    for other in (str(run / "checkpoint"), "tiny-clip", "tiny-llava"):
        with pytest.raises(CompExportError, match=r"other weights than .* with --model"):
            dense_model(opened, plan, InsightOptions(1, model=other))


def test_a_run_of_tokens_alone_has_no_heads_to_mask(made, tmp_path):
    run = tmp_path / "tokens"
    result = call(
        "prune",
        "--model",
        made / "dense",
        "--method",
        "turbo",
        "--rate",
        "0.2",
        "--out",
        run,
        *QUICK,
    )
    assert result.exit_code == 0, result.output
    result = inspected(run)
    assert result.exit_code == 1
    assert "rank-stability: the run removes no attention heads (method turbo)" in str(
        result.exception
    )
    assert {path.stem for path in (run / "figures").iterdir()} == {
        *OF_THE_RUN,
        "overlap",
        "figures",
    }


def test_a_folder_with_other_files_is_not_replaced(run):
    (run / "figures").mkdir()
    (run / "figures" / "mine.png").write_bytes(b"mine")
    result = inspected(run)
    assert result.exit_code == 1
    assert "was not written by inspect --figures: move it away" in str(result.exception)
    assert [path.name for path in (run / "figures").iterdir()] == ["mine.png"]


def test_contradicting_options_are_refused(run):
    for words, message in (
        (("--samples", 3), "--samples is for --figures: give that too"),
        (("--model", "tiny-clip"), "--model is for --figures"),
        (("--figures", "--no-figures"), "exclude each other"),
    ):
        result = call("inspect", run, *words)
        assert result.exit_code == 1
        assert message in str(result.exception)
    (run / "onnx").mkdir()
    (run / "onnx" / "manifest.json").write_text('{"files": []}')
    result = call("inspect", run / "onnx", "--figures")
    assert "is an artifact, and --figures needs a run" in str(result.exception)


def test_stages_of_another_run_are_refused(run):
    lines = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    lines[0]["macs"] *= 2
    (run / "stages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = inspected(run)
    assert result.exit_code == 1
    assert "the files are of different runs" in str(result.exception)
    assert not (run / "figures").exists()
