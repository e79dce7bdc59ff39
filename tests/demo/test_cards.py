"""The page's HTML: escaped, and correct."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from comp.checkpoints.image_settings import ImageProcessing, ImageSize
from demo.cards import base as cards
from demo.cards.answer import AnswerFace
from demo.cards.html import milliseconds, plain
from demo.cards.kept_tokens import KeptView
from demo.comparison import Comparison, Side
from demo.reports import RunReports
from export.artifact.encoder_manifest import TowerInfo
from serve.generation.options import GenerationOptions
from serve.generation.results import Generation, Timings, TowerKept
from tests.export.manifests import encoder_manifest

SMALL_TOWER = encoder_manifest("caption").model_copy(
    update={
        "image_processor": ImageProcessing(
            size=ImageSize(height=70, width=70),
            do_center_crop=False,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
        ),
        "vision": TowerInfo(image_size=70, patch_size=14, tokens=26, hidden_size=8),
    }
)

VOID = {"img", "br"}


class Balanced(HTMLParser):
    """Raises when tags do not close in order; tags separate words, except ``mark``."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.text += " " * (tag != "mark")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.text += " " * (tag != "mark")
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def text_of(html):
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    return " ".join(parser.text.split())


def done(pair, which, picture):
    options = GenerationOptions(max_new_tokens=4, ignore_eos=True)
    generation = pair.engine(which).generate([picture], "where?", options)
    return Side(which, "done", generation.text, generation)


def test_model_text_is_escaped_in_html():
    hostile = "<script>alert(1)</script> {{value}} ${value}"
    assert plain(hostile).count("<") == 0
    for sign in "{}$":
        assert sign not in plain(hostile)
    assert text_of(f"<p>{plain(hostile)}</p>") == hostile


def test_a_finished_card_shows_times_and_costs(pair, picture):
    side = done(pair, "compressed", picture)
    text = text_of(cards.card(side, pair, AnswerFace(side.text)))
    assert milliseconds(side.result.ttft_ms) in text
    assert milliseconds(side.result.tpot_ms) in text
    assert milliseconds(side.result.total_ms) in text
    assert "✓ right" in text
    assert "✗ wrong: expected <else>" in text_of(cards.card(side, pair, AnswerFace("<else>")))
    unknown = text_of(cards.card(side, pair, AnswerFace()))
    assert "✓" not in unknown
    assert "✗" not in unknown
    assert "waits" in text_of(cards.card(Side("dense", "waiting"), pair, AnswerFace()))


def timed(which, *first_ms, steps=3):
    """A finished side whose runs took these times to the first token."""
    runs = tuple(
        Generation("a fox", (1, 2), "eos", 1, 16, TowerKept({}), Timings(0, 0, ms, 30, steps))
        for ms in first_ms
    )
    return Side(which, "done", "a fox", runs[0], runs)


def test_bars_compare_medians_of_equal_lengths(pair):
    slow, fast = timed("dense", 20, 22, 90, 21, 20), timed("compressed", 10, 11, 10, 50, 10)
    chart = cards.bars(pair, AnswerFace(), Comparison(slow, fast, measured=True))
    text = text_of(chart)
    assert "median of 5 runs in turn" in text
    assert "First token 2.10× faster 21.0 10.0" in text
    assert "Total 4 tokens" in text
    assert "half of the runs took 20.0 to 22.0 ms" in chart
    assert chart.count("ce-spread") == 6
    assert "busy" not in text
    assert "Ask" in text_of(cards.bars(pair, AnswerFace(), Comparison()))
    waits = cards.bars(pair, AnswerFace(), Comparison(slow, fast))
    assert "Running both again" in text_of(waits)


def test_noise_is_said_and_hides_small_gains(pair):
    slow, fast = timed("dense", 20, 30, 40, 25, 35), timed("compressed", 21, 29, 22, 35, 28)
    text = text_of(cards.bars(pair, AnswerFace(), Comparison(slow, fast, measured=True)))
    assert "First token within noise" in text
    assert "This machine is busy now" in text


def test_accuracy_and_times_of_the_reports_stand_beside_the_answer(pair, tmp_path):
    same = Comparison(timed("dense", 2.0), timed("compressed", 1.0), measured=True)
    assert "run comp-export eval" in text_of(cards.remarks(pair, AnswerFace(), same))
    for which in ("dense", "compressed"):
        assert "bench" not in text_of(cards.bars(pair, AnswerFace(), same)), which
    evaluated = {
        "dense": {"accuracy": 0.968, "n": 600},
        "compressed": {"accuracy": 0.915, "n": 600},
        "data": {"name": "EmojiScenes test"},
        "metric": "exact match",
    }
    benched = {"dense": {"ttft_ms": 11.3}, "compressed": {"ttft_ms": 6.28}}
    (tmp_path / "eval.json").write_text(json.dumps(evaluated))
    (tmp_path / "bench.json").write_text(json.dumps(benched))
    measured = replace(pair, reports=RunReports.read(tmp_path))
    words = text_of(cards.remarks(measured, AnswerFace(), same))
    assert words == "= same answer Original → compressed: 96.8 → 91.5 % of 600 test questions"
    assert "bench: 11.3 → 6.28, 1.80×" in text_of(cards.bars(measured, AnswerFace(), same))
    other = replace(same, compressed=replace(timed("compressed", 1.0), result=answer_of("a cow")))
    assert "≠ answers differ" in text_of(cards.remarks(pair, AnswerFace(), other))
    (tmp_path / "eval.json").write_text("{")
    assert RunReports.read(tmp_path).accuracy is None


def answer_of(text):
    return Generation(text, (1,), "eos", 1, 16, TowerKept({}), Timings(1, 2, 3))


def test_costs_and_proof_follow_the_keep_factor(pair):
    own, other = pair, pair.at(0.5)
    proved = replace(pair, proved=True)
    assert "not verified" not in text_of(cards.header(proved))
    assert "not verified here" in text_of(cards.header(proved.at(0.5)))
    assert own.macs("dense") == other.macs("dense")
    assert (
        other.macs("compressed") < own.macs("compressed") == own.compressed.manifest.macs.artifact
    )
    ready = Side("compressed")
    assert cards.card(ready, own, AnswerFace()) != cards.card(ready, other, AnswerFace())


def test_the_product_is_named_and_linked(pair):
    head = cards.header(pair)
    assert text_of(head).startswith("comp-export Same question, two models")
    assert 'href="' in head


def test_kept_panel_names_each_drop(pair, picture):
    side = done(pair, "compressed", picture)
    view = KeptView.of(pair.compressed.manifest, picture, side.result.kept)
    row = cards.kept_panel([view])
    text = text_of(row)
    assert "after layer 1 8 of 16 stay" in text
    assert "after layer 3 4 of 16 stay" in text
    assert "drop places" not in text
    assert row.count("data:image/webp") == 3
    assert "http" not in row


def test_kept_panel_says_how_many_places_it_shows():
    kept = TowerKept({("vision", layer): [np.arange(20 - layer)] for layer in range(1, 13)})
    manifest = SMALL_TOWER
    view = KeptView.of(manifest, Image.new("RGB", (70, 70)), kept)
    text = text_of(cards.kept_panel([view]))
    assert "4 of 12 drop places · dropped patches fade" in text
    assert [n for n in range(1, 13) if f"after layer {n} " in text] == [1, 5, 8, 12]
    none = KeptView.of(manifest, Image.new("RGB", (70, 70)), TowerKept({}))
    assert "drops no image tokens" in text_of(cards.kept_panel([none]))


def test_header_reports_a_missing_proof(pair):
    assert "not verified" in text_of(cards.header(pair))
    assert "40 % of FLOPs removed" in text_of(cards.header(pair))
