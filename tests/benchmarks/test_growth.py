"""The growth of cost: every point in its own process, one report and one figure."""

import json

import growth
import pytest
from growth import Point, main, points_of
from PIL import Image

from serve.backends.onnxruntime.vnni_check import multiplies_exactly


def test_each_axis_has_its_points():
    points = list(points_of(0.62))
    by_axis = {axis: [point for each, point in points if each == axis] for axis in growth.AXES}
    assert {point.images for point in by_axis["images"]} == {1, 2, 4, 8}
    assert {point.text_tokens for point in by_axis["text_tokens"]} == {64, 256, 1024}
    assert {point.batch for point in by_axis["batch"]} == {1, 2, 4, 8}
    assert [point.rate for point in by_axis["rate"]] == [0.0, 0.3, 0.5, 0.62, 0.7]
    for axis in ("images", "text_tokens", "batch"):
        assert {point.rate for point in by_axis[axis]} == {0.0, 0.62}
        whole = Point(0.0)
        assert whole in by_axis[axis]  # the axes meet in one image, one prompt, 64 tokens of text


@pytest.mark.slow
@pytest.mark.skipif(not multiplies_exactly(), reason="this CPU has no VNNI: int8 is refused")
def test_small_model_gives_a_report_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "IMAGES", (1, 2))
    monkeypatch.setattr(growth, "TEXTS", (64,))
    monkeypatch.setattr(growth, "BATCHES", (1, 2))
    monkeypatch.setattr(growth, "RATES", (0.5,))
    out = tmp_path / "growth.json"
    words = ["--shape", "tiny", "--work", str(tmp_path / "work"), "--out", str(out)]
    few = [
        "--passes",
        "1",
        "--repeats",
        "1",
        "--warmup",
        "0",
        "--new-tokens",
        "3",
        "--threads",
        "1",
    ]
    assert main([*words, *few]) == 0
    report = json.loads(out.read_text())
    points = {
        (row["rate"], row["images"], row["batch"]): row
        for row in report["points"]
        if row["text_tokens"] == 64
    }
    assert set(points) == {
        *((rate, images, 1) for rate in (0.0, 0.62) for images in (1, 2)),
        *((rate, 1, 2) for rate in (0.0, 0.62)),
        (0.5, 1, 1),
    }
    for row in points.values():
        assert 0 < row["ttft_ms"]["min"] <= row["ttft_ms"]["median"] <= row["ttft_ms"]["max"]
        assert row["tpot_ms"]["min"] > 0
        assert row["peak_rss_mb"] > 30
    assert points[0.0, 1, 1]["axes"] == ["images", "text_tokens", "batch", "rate"]
    with Image.open(out.with_suffix(".png")) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 1000


def test_options_out_of_range_are_refused(tmp_path, capsys):
    out = str(tmp_path / "out.json")
    assert main(["--shape", "tiny", "--out", out, "--passes", "0"]) == 1
    assert capsys.readouterr().err.startswith("Error: --passes 0: choose 1 or more")
    assert not list(tmp_path.iterdir())
