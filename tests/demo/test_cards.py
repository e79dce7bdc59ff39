"""The page's HTML: escaped, and telling the truth."""

from html.parser import HTMLParser

from demo import cards
from demo.comparison import Comparison, Side
from serve.options import GenerationOptions

VOID = {"img", "br"}


class Balanced(HTMLParser):
    """Raises when tags do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}"


def text_of(html):
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    return " ".join(parser.text.split())


def done(pair, which, picture):
    engine = pair.dense if which == "dense" else pair.compressed
    options = GenerationOptions(max_new_tokens=4, ignore_eos=True)
    generation = engine.generate([picture], "where?", options)
    return Side(which, "done", generation.text, generation)


def test_text_from_models_cannot_become_markup_or_a_template():
    hostile = "<script>alert(1)</script> {{value}} ${value}"
    assert cards.plain(hostile).count("<") == 0
    for sign in "{}$":
        assert sign not in cards.plain(hostile)
    assert text_of(f"<p>{cards.plain(hostile)}</p>") == hostile


def test_a_finished_card_shows_times_and_costs(pair, picture):
    side = done(pair, "compressed", picture)
    manifests = pair.manifests
    card = cards.answer_card(side, manifests["compressed"], manifests["dense"], side.text)
    text = text_of(card)
    assert f"{side.generation.ttft_ms:.1f}" in text
    assert f"{side.generation.tpot_ms:.2f}" in text
    assert f"{side.generation.total_ms:.1f}" in text
    assert "✓ right" in text
    wrong = cards.answer_card(side, manifests["compressed"], manifests["dense"], "<else>")
    assert "✗ <else>" in text_of(wrong)
    waiting = cards.answer_card(Side("dense", "waiting"), *[manifests["dense"]] * 2, None)
    assert "waits" in text_of(waiting)


def test_bars_compare_both(pair, picture):
    now = Comparison(done(pair, "dense", picture), done(pair, "compressed", picture))
    chart = cards.bars(now)
    text = text_of(chart)
    assert "First token" in text
    assert any(word in text for word in ("faster", "slower", "alike"))
    assert chart.count("width:100.0%") >= 3  # the longer bar of each group fills its track
    assert "Ask" in text_of(cards.bars(Comparison()))


def test_kept_row_names_each_drop(pair, picture):
    side = done(pair, "compressed", picture)
    row = cards.kept_row(*pair.kept_pictures(picture, side.generation))
    text = text_of(row)
    assert "after layer 1 8 of 16 stay" in text
    assert "after layer 3 4 of 16 stay" in text
    assert row.count("data:image/webp") == 3
    assert "http" not in row


def test_header_says_when_nothing_is_proved(pair):
    assert "not verified" in text_of(cards.header(pair))
    assert "40 % of FLOPs removed" in text_of(cards.header(pair))
