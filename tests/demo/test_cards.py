"""The page's HTML: escaped, and correct."""

from html.parser import HTMLParser

import numpy as np
from PIL import Image

from comp.checkpoints.image_settings import ImageProcessing, ImageSize
from demo.cards import base as cards
from demo.cards.answer import AnswerFace
from demo.cards.html import milliseconds, plain
from demo.cards.kept_tokens import KeptView
from demo.comparison import Comparison, Side
from export.artifact.encoder_manifest import TowerInfo
from serve.generation.options import GenerationOptions
from serve.generation.results import TowerKept
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
    assert "✗ <else>" in text_of(cards.card(side, pair, AnswerFace("<else>")))
    unknown = text_of(cards.card(side, pair, AnswerFace()))
    assert "✓" not in unknown
    assert "✗" not in unknown
    assert "waits" in text_of(cards.card(Side("dense", "waiting"), pair, AnswerFace()))


def test_bars_compare_both_models(pair, picture):
    now = Comparison(done(pair, "dense", picture), done(pair, "compressed", picture))
    chart = cards.bars(pair, AnswerFace(), now)
    text = text_of(chart)
    assert "First token" in text
    assert any(word in text for word in ("faster", "slower", "alike"))
    assert chart.count("width:100.0%") >= 3  # the longer bar of each group fills its track
    assert "Ask" in text_of(cards.bars(pair, AnswerFace(), Comparison()))


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
