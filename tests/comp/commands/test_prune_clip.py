"""`comp-export prune` of a CLIP as a user runs it, on a small random checkpoint saved by transformers."""

import json

import pytest
import torch
from click.testing import CliRunner

from comp.adapter import Forwarding
from comp.cli import cli
from comp.data.emoji_scenes.captions import CaptionExamples, EmojiCaptions
from comp.data.formats.karpathy import load_karpathy
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.runs import open_run
from tests.comp.small_clip import random_clip
from tests.drawing import drawn

QUICK = ("--stages", "4", "--steps-per-stage", "1", "--recover-steps", "2", "--batch-size", "4")
QUICK += ("--calibration", "8", "--validation", "8", "--dtype", "float32", "--device", "cpu")


def prune(checkpoint, out, *more):
    arguments = ["prune", "--model", str(checkpoint), "--rate", "0.5", "--out", str(out)]
    return CliRunner().invoke(cli, [*arguments, *QUICK, *more], catch_exceptions=False)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "dense"
    random_clip().save(path)
    return path


@pytest.fixture(scope="module")
def pruned(clip_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "clip"
    with drawn():
        result = prune(clip_checkpoint, out, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), open_run(out)


def test_clip_is_pruned(pruned):
    printed, run = pruned
    plan = run.load_plan()
    assert plan.family == "clip"
    assert printed["rate"] == plan.rate == pytest.approx(0.5, abs=0.01)
    assert printed["metric"]["name"] == "validation R@1 among 4"
    assert {block.part for block in plan.blocks} == {"vision", "language"}
    lines = [json.loads(line) for line in run.stages.read_text().splitlines()]
    assert {mode for line in lines for mode in line["costs"]} <= {
        f"{part}_{what}" for part in ("vision", "language") for what in ("tokens", "parameters")
    }
    assert (run.reports / "structure.png").is_file()


@torch.no_grad()
def test_the_slim_checkpoint_loads_and_scores(pruned):
    _, run = pruned
    adapter = load_adapter(run.checkpoint)
    batch = adapter.collate([CaptionExamples("validation", 4)[i] for i in range(4)])
    embedded = adapter.model.embedded_images(batch.pixel_values)
    left = embedded.encoded.tokens.states.shape[1]
    vision = [drop for drop in run.load_plan().drops if drop.part == "vision"]
    assert left < 145 if vision else left == 145
    assert torch.isfinite(adapter.score(batch, Forwarding()).loss)


def test_inspect_shows_both_towers(pruned):
    _, run = pruned
    result = CliRunner().invoke(cli, ["inspect", str(run.path)])
    assert result.exit_code == 0, result.output
    for words in ("vision 2", "language 2", "145 + 0"):
        assert words in result.output
    actual = json.loads(CliRunner().invoke(cli, ["inspect", str(run.path), "--json"]).stdout)
    assert len(actual["plan"]["tokens_per_layer"]["vision"]) == 3
    assert actual["plan"]["tokens_per_layer"]["vision"][0] == 145


def test_own_captions(clip_checkpoint, tmp_path):
    data = CaptionExamples("train", 48)
    lines = []
    for number in range(48):
        example = data[number]
        example.image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": example.answer}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    result = prune(clip_checkpoint, tmp_path / "run", "--data", str(tmp_path / "captions.jsonl"))
    assert result.exit_code == 0, result.output
    (tmp_path / "asked.jsonl").write_text('{"image": "0.png", "question": "?", "answer": "fox"}\n')
    with pytest.raises(
        CompExportError, match="is JSONL of questions, not data for a retrieval task"
    ):
        prune(clip_checkpoint, tmp_path / "other", "--data", str(tmp_path / "asked.jsonl"))
    (tmp_path / "captions.csv").write_text("image,caption")
    with pytest.raises(
        CompExportError, match=r"captions\.csv is neither JSON nor an object a line"
    ):
        prune(clip_checkpoint, tmp_path / "third", "--data", str(tmp_path / "captions.csv"))
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(
        CompExportError, match="is LLaVA-Instruct JSON, not data for a retrieval task"
    ):
        prune(clip_checkpoint, tmp_path / "third", "--data", str(tmp_path / "captions.json"))
    assert not (tmp_path / "third").exists()


def test_karpathy_captions_are_read(clip_checkpoint, tmp_path):
    """Write data as in COCO's file: a folder for each set, several sentences, splits in the records."""
    (tmp_path / "val2014").mkdir()
    data = EmojiCaptions("train", 24)
    images = []
    for number in range(24):
        shown = data[number]
        shown.image.save(tmp_path / "val2014" / f"{number}.jpg")
        split = ("train", "restval", "val")[number % 3]
        sentences = [{"raw": caption, "tokens": []} for caption in shown.captions]
        record = {"filepath": "val2014", "filename": f"{number}.jpg", "split": split}
        images.append(record | {"sentences": sentences, "imgid": number, "cocoid": number})
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    train, validation = (load_karpathy(path, tmp_path, of) for of in ("train", "validation"))
    assert len(train) == sum(len(data[n].captions) for n in range(24) if n % 3 < 2)
    assert [example.answer for example in validation] == [
        data[n].captions[0] for n in range(2, 24, 3)
    ]
    assert validation[0].image.size == data[2].image.size
    result = prune(clip_checkpoint, tmp_path / "run", "--data", str(path))
    assert result.exit_code == 0, result.output
    with pytest.raises(CompExportError, match="no image of the test split"):
        load_karpathy(path, tmp_path, "test")
    with pytest.raises(CompExportError, match="no image folder"):
        load_karpathy(path, tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "image 1: split is 'dev'"),
        ({"sentences": []}, "image 1 has no sentences"),
        ({"sentences": [{"raw": " "}]}, "'raw' is ' '"),
        ({"filename": "../x.jpg"}, "leads out of"),
        ({"filename": "y.jpg"}, "no image 'y.jpg'"),
    ],
)
def test_damaged_karpathy_captions_are_refused(tmp_path, change, message):
    (tmp_path / "pictures").mkdir()
    record = {"filename": "x.jpg", "split": "train", "sentences": [{"raw": "a fox"}]} | change
    (tmp_path / "data.json").write_text(json.dumps({"images": [record]}))
    with pytest.raises(CompExportError, match=message):
        load_karpathy(tmp_path / "data.json", tmp_path / "pictures", "train")


def test_lora_recovers_a_clip(clip_checkpoint, tmp_path):
    result = prune(clip_checkpoint, tmp_path / "run", "--recover", "lora", "--lora-rank", "2")
    assert result.exit_code == 0, result.output


def test_spreading_over_devices_is_refused(clip_checkpoint):
    with pytest.raises(CompExportError, match="leave it out"):
        load_adapter(clip_checkpoint, device_map="auto")


def test_an_unknown_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CompExportError, match="'gpt2': what can be pruned is llava"):
        prune(tmp_path, tmp_path / "run")


def test_vision_learning_rate_is_refused_for_clip(clip_checkpoint, tmp_path):
    with pytest.raises(CompExportError, match=r"--tower-lr 0\.5 is for the image tower of a llava"):
        prune(clip_checkpoint, tmp_path / "run", "--tower-lr", "0.5")
    assert not (tmp_path / "run").exists()
