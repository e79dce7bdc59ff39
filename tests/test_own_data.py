"""A user's own data, from ``prune --data`` to ``eval``: what is measured was held out, or is warned of."""

import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

import comp
from comp.cli import cli
from comp.data.example import Example
from comp.data.of_run import data_of_run, given_data
from comp.data.split import Split
from comp.errors import CompExportError
from comp.pipeline.run_data import FINGERPRINT
from comp.runs import RunDirectory
from export.calibration import examples_for
from serve.study.measuring import held_out
from tests.comp.small import small_adapter
from tests.comp.small_clip import random_clip

QUICK = ("--recover", "none", "--stages", "1", "--calibration", "4", "--validation", "4")
QUICK += ("--rate", "0.2", "--batch-size", "4", "--dtype", "float32", "--device", "cpu")
PICTURES, QUESTIONS = 20, 3


def called(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def write_data(path, pictures=range(PICTURES), words="what colour is it?"):
    """Write questions about pictures, several about each."""
    lines = []
    for number in pictures:
        name = f"{number}.png"
        if not (path.parent / name).exists():
            Image.new("RGB", (168, 168), (12 * (number % 20), number, 90)).save(path.parent / name)
        for asked in range(QUESTIONS):
            question = f"{words} {asked}"
            lines.append(json.dumps({"image": name, "question": question, "answer": "red"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def pictures_of(data):
    return {record.image.name for record in (data.examples.records[i] for i in data.indices)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run pruned on own data by the command, exported, with what ``prune`` printed."""
    base = tmp_path_factory.mktemp("own")
    small_adapter().save(base / "dense")
    data = write_data(base / "mine.jsonl")
    words = ("--model", base / "dense", "--out", base / "run", "--data", data, *QUICK)
    printed = called("prune", *words).stderr
    called("onnx", base / "run", "--no-check")
    return base, printed


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run, and its data in its place."""
    base, _ = made
    shutil.copytree(base / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_prune_splits_by_picture_and_says_so(made):
    base, printed = made
    split = Split.load(base / "run" / "split.json")
    assert split.examples == {"train": 48, "validation": 6, "test": 6}
    assert split.pictures == {"train": 16, "validation": 2, "test": 2}
    assert (split.by, split.data, split.images) == ("picture", str(base / "mine.jsonl"), None)
    assert "48 examples (16 pictures) train, 6 examples (2 pictures) validate" in printed
    assert "warning: only 6 examples test" in printed
    request = json.loads((base / "run" / "run.json").read_text())["request"]
    assert request["data"] == str(base / "mine.jsonl")
    parts = [
        pictures_of(data_of_run(RunDirectory(base / "run"), "question", part=part).examples)
        for part in ("train", "validation", "test")
    ]
    assert len(set.union(*parts)) == sum(map(len, parts)) == PICTURES


@pytest.mark.slow
def test_eval_and_verify_take_what_was_held_out(made, run):
    base, _ = made
    few = ("--max-new-tokens", 2, "--json")
    result = called("eval", run.path, *few)
    report = json.loads(result.stdout)
    assert report["data"] == {"name": "mine.jsonl, test part", "part": "test", "n": 6}
    assert "WARNING" not in result.stderr
    again = called("eval", run.path, "--data", base / "mine.jsonl", *few)
    assert "is what the run was pruned on: only its test part is used" in again.stderr
    same = json.loads(again.stdout)
    assert (same["data"], same["dense"]) == (report["data"], report["dense"])
    trained = called("eval", run.path, "--split", "train", "--limit", 4, *few)
    assert "WARNING: the run was trained on these examples" in trained.stderr
    assert "trained on" in json.loads(trained.stdout)["data"]["warning"]
    assert "**WARNING: the run was trained" in (run.reports / "eval.md").read_text()
    proved = json.loads(called("verify", run.path, "--questions", 2, *few).stdout)
    assert proved["ok"]
    assert proved["data"] == "mine.jsonl, test part"


def test_a_study_measures_on_what_its_runs_held_out(run):
    examples, source = held_out(run, "question", None, 4, follow_links=False)
    assert len(examples) == 4
    assert source == {"name": "mine.jsonl, test part", "part": "test"}
    run.split.unlink()
    with pytest.raises(CompExportError, match=r"put no test part aside: .*test_data"):
        held_out(run, "question", None, 4, follow_links=False)


def test_data_at_another_place_is_known(run, tmp_path):
    copied = write_data(tmp_path / "copy.jsonl")
    given = given_data(run, "question", copied)
    assert (given.part, len(given.examples), given.warning) == ("test", 6, None)
    assert len(examples_for(run, 4, copied, None)) == 48


def test_other_data_about_the_same_pictures_is_warned_of(made, run):
    base, _ = made
    test = data_of_run(run, "question").examples
    held_out = [int(name.removesuffix(".png")) for name in pictures_of(test)]
    trained = next(number for number in range(PICTURES) if number not in held_out)
    (base / "more").mkdir(exist_ok=True)
    mixed = write_data(base / "mixed.jsonl", [trained, *held_out], "what is it?")
    given = given_data(run, "question", mixed)
    assert given.part is None
    assert "3 of these 9 examples are about pictures that the run was trained on" in given.warning
    fresh = write_data(base / "fresh.jsonl", [*held_out, 21, 22], "what is it?")
    assert given_data(run, "question", fresh).warning is None


def test_data_that_has_changed_or_is_gone_is_refused(run, tmp_path):
    data = write_data(tmp_path / "mine.jsonl")
    split = Split.load(run.split)
    split.model_copy(update={"data": str(data)}).save(run.split)
    assert len(data_of_run(run, "question").examples) == 6
    write_data(data, words="what shape is it?")
    with pytest.raises(CompExportError, match=r"mine.jsonl has changed since run was pruned on it"):
        data_of_run(run, "question")
    data.unlink()
    with pytest.raises(CompExportError, match=r"is gone: say where it is with --data"):
        data_of_run(run, "question")


def test_a_run_of_an_earlier_release_has_no_test_part(made, run):
    base, _ = made
    run.split.unlink()
    assert data_of_run(run, "question") is None
    given = given_data(run, "question", base / "mine.jsonl")
    assert len(given.examples) == PICTURES * QUESTIONS
    assert "the run was trained on these examples" in given.warning
    assert given_data(run, "question", write_data(base / "else.jsonl")).warning is None


def captions(count):
    return [
        Example(
            Image.new("RGB", (168, 168), (5 * number, 9, 90)), "", f"picture {number}", "caption"
        )
        for number in range(count)
    ]


def test_examples_of_python_are_split_by_their_pixels(tmp_path):
    random_clip().save(tmp_path / "dense")
    options = {"recover": "none", "stages": 1, "calibration": 4, "validation": 4, "batch_size": 4}
    run = comp.prune(
        tmp_path / "dense", 0.2, data=captions(50), out=tmp_path / "run", device="cpu", **options
    )
    split = Split.load(run.split)
    assert (split.data, split.examples) == (None, {"train": 40, "validation": 5, "test": 5})
    given = given_data(run, "retrieval", captions(50))
    assert (given.part, len(given.examples)) == ("test", 5)
    assert [each.answer for each in given.examples] == [f"picture {n}" for n in split.test]
    assert given_data(run, "retrieval", captions(49)).part is None
    with pytest.raises(CompExportError, match="was pruned on examples that Python gave"):
        data_of_run(run, "retrieval")
    run.clear()  # as for a run without own data in its place
    assert not run.split.exists()


def test_a_file_with_splits_keeps_them(tmp_path):
    random_clip().save(tmp_path / "dense")
    images = []
    for number, split in enumerate([*["train"] * 8, *["val"] * 4, *["test"] * 3]):
        Image.new("RGB", (168, 168), (9 * number, 9, 90)).save(tmp_path / f"{number}.png")
        sentences = [{"raw": f"picture {number}"}]
        images.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    words = ("--model", tmp_path / "dense", "--out", tmp_path / "run", "--data", path, *QUICK)
    printed = called("prune", *words).stderr
    assert "its own splits: 8 examples train, 4 examples validate, 3 examples test" in printed
    run = RunDirectory(tmp_path / "run")
    test = data_of_run(run, "retrieval")
    assert (test.part, len(test.examples), test.warning) == ("test", 3, None)
    train = data_of_run(run, "retrieval", path, part="train")
    assert "trained on these examples" in train.warning


def test_a_run_is_not_resumed_on_other_data(made, tmp_path):
    base, _ = made
    data = write_data(tmp_path / "mine.jsonl")

    class Stop(comp.Callback):
        def on_stage(self, stage):
            raise InterruptedError

    options = {"recover": "none", "stages": 2, "calibration": 4, "validation": 4, "batch_size": 4}
    options |= {"data": data, "out": tmp_path / "run", "device": "cpu", "dtype": "float32"}
    with pytest.raises(InterruptedError):
        comp.prune(base / "dense", 0.2, callbacks=[Stop()], **options)
    assert json.loads((tmp_path / "run" / ".state" / "request.json").read_text())[FINGERPRINT]
    write_data(data, words="what shape is it?")
    with pytest.raises(CompExportError, match=r"mine.jsonl has changed since .* was started"):
        comp.prune(base / "dense", 0.2, resume=True, **options)
    write_data(data)
    assert comp.prune(base / "dense", 0.2, resume=True, **options).split.is_file()
