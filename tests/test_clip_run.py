"""A CLIP through every verb, as a user runs them, on a small random checkpoint saved by transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from comp.cli import cli
from comp.data.emoji_scenes.captions import CaptionExamples
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from export.artifact.load import read_manifest
from serve.engines.retriever import Retriever
from serve.loading import load_engine


def call(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)


def called(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def run(fresh_run):
    return fresh_run("clip")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        CaptionExamples("test")[number].image.save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(3)]


def test_the_manifest_describes_the_artifact(run):
    plan = json.loads((run / "plan.json").read_text())
    slim, dense = (read_manifest(run / name) for name in ("onnx", "onnx-dense"))
    assert (slim.family, slim.task, slim.dense, dense.dense) == ("clip", "retrieval", False, True)
    assert slim.macs.artifact == plan["macs"] < slim.macs.dense == plan["macs_dense"]
    assert dense.macs.artifact == plan["macs_dense"]
    adapter = load_adapter(run / "checkpoint")
    assert slim.params == sum(p.numel() for p in adapter.model.parameters()) < dense.params
    assert slim.logit_scale == pytest.approx(adapter.model.logit_scale.exp().item())


def test_verify_passes(run):
    report = called("verify", run, "--questions", "20")
    assert report["ok"]
    assert [link["name"] for link in report["links"]] == [
        "masked torch = slim torch",
        "slim torch = ONNX Runtime (onnx)",
        "dense torch = ONNX Runtime (onnx-dense)",
    ]
    places = {(place["part"], place["after_layer"]) for place in report["links"][1]["kept"]}
    assert places == {(part, n) for part in ("vision", "language") for n in (1, 2)}
    assert all(link["max_logit_difference"] < 1e-4 for link in report["links"])
    assert read_manifest(run / "onnx").verified.ok


def test_verify_fails_on_other_weights(run, tmp_path):
    """One matrix of the checkpoint changes after the export."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    adapter = load_adapter(copy / "checkpoint")
    with torch.no_grad():
        adapter.model.vision_model.encoder.layers[0].mlp.fc2.weight[0] += 0.05
    adapter.save(copy / "checkpoint")
    result = call("verify", copy, "--questions", "4", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [link["ok"] for link in report["links"]] == [True, False, True]
    assert not read_manifest(copy / "onnx").verified.ok
    assert read_manifest(copy / "onnx-dense").verified.ok


def test_eval_equals_torch(run):
    """R@1 both ways of the artifacts against embeddings of the slim model in torch."""
    report = called("eval", run, "--limit", "30", "--gallery", "10")
    assert report["metric"] == "R@1, both ways, among 10"
    adapter = load_adapter(run / "checkpoint")
    pairs = CaptionExamples("test", 30)
    right = {"texts of an image": 0, "images of a text": 0}
    for begin in range(0, 30, 10):
        batch = adapter.collate([pairs[i] for i in range(begin, begin + 10)])
        with torch.no_grad():
            images = adapter.model.embedded_images(batch.pixel_values).embeds
            texts = adapter.model.embedded_texts(batch.input_ids, batch.attention_mask).embeds
        scores, own = images @ texts.T, torch.arange(10)
        right["texts of an image"] += int((scores.argmax(1) == own).sum())
        right["images of a text"] += int((scores.argmax(0) == own).sum())
    kinds = report["compressed"]["by_kind"]
    for way, hits in right.items():
        assert kinds[f"R@1, {way}"]["right"] == hits
        assert kinds[f"R@10, {way}"]["right"] == 30
    assert report["compressed"]["n"] == 60
    assert (run / "reports" / "eval.md").is_file()


def test_bench_times_both_towers(run):
    report = called("bench", run, "--repeats", "2", "--warmup", "1", "--cold-starts", "1")
    assert report["workload"]["task"] == "retrieval"
    assert report["workload"]["images"] == 1
    for which in ("dense", "compressed"):
        times = report[which]
        assert times["tpot_ms"] == 0
        assert min(times["vision_ms"], times["prefill_ms"], times["cold_start_ms"]) > 0
    assert report["speedup"]["tpot"] is None
    text = (run / "reports" / "bench.md").read_text()
    assert "Time to the result" in text
    assert "per output token" not in text
    with Image.open(run / "reports" / "bench.png") as figure:
        assert figure.width > 500


def test_run_ranks(run, pictures):
    texts = ["a fox.", "a wheel at the top.", "a red apple."]
    chosen = [word for text in texts for word in ("--prompt", text)]
    shown = [word for picture in pictures for word in ("--image", picture)]
    actual = called("run", run, *shown, *chosen)
    scores = np.array(actual["scores"])
    assert scores.shape == (3, 3)
    assert actual["best_text"] == scores.argmax(1).tolist()
    assert actual["best_image"] == scores.argmax(0).tolist()
    assert np.allclose(np.sum(actual["probabilities"], axis=1), 1, atol=1e-5)
    assert set(actual["kept"]) == {"vision 1", "vision 2", "language 1", "language 2"}
    table = call("run", run, *shown, *chosen, "--dense")
    assert table.exit_code == 0
    assert all(text in table.output for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "{0}"), "--prompt is missing: retrieval takes at least 1"),
        (("--image", "{0}", "--prompt", " "), "a candidate is empty"),
        (("--image", "{0}", "--prompt", "fox " * 70), "the model has 64 positions: shorten it"),
        (("--image", "nowhere.png", "--prompt", "a fox"), "cannot read image nowhere.png"),
    ],
)
def test_run_refuses_bad_input(run, pictures, arguments, message):
    with pytest.raises(CompExportError, match=message):
        call("run", run, *(each.format(pictures[0]) for each in arguments))


def test_every_kind_of_picture_is_accepted(run, tmp_path):
    """Grey, palette, alpha, CMYK and rotated pictures are seen as their RGB is."""
    engine = load_engine(run / "onnx")
    assert isinstance(engine, Retriever)
    picture = CaptionExamples("test")[0].image
    grey = picture.convert("L")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    names = ("cmyk.jpg", "palette.png", "alpha.png", "turned.png")
    actual = engine.embed_images([tmp_path / name for name in names]).embeds
    plain = engine.embed_images([picture]).embeds[0]
    close = actual @ plain
    assert close[2] == pytest.approx(1, abs=1e-5)
    assert close[3] == pytest.approx(1, abs=1e-5)
    assert min(close) > 0.9
    both = engine.embed_images([grey, grey.convert("RGB")]).embeds
    assert both[0] @ both[1] == pytest.approx(1, abs=1e-5)
    # In batches of any size, in any order.
    alone = np.stack([engine.embed_images([tmp_path / name]).embeds[0] for name in names])
    assert np.allclose(alone, actual, atol=1e-5)


def test_texts_of_all_lengths_stay_in_order(run):
    engine = load_engine(run / "onnx")
    texts = ["a fox.", "a fox and a wheel.", "a ram.", "you can see a fox at the top.", "a fox."]
    together = engine.embed_texts(texts)
    alone = [engine.embed_texts([text]) for text in texts]
    assert np.allclose(together.embeds, [each.embeds[0] for each in alone], atol=1e-5)
    for place, rows in together.kept.items():
        for row, each in zip(rows, alone, strict=True):
            assert row.tolist() == each.kept[place][0].tolist()
