"""The Gradio page: layout and events. What it shows is made in ``demo.cards``."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from comp.errors import CompExportError
from demo import cards
from demo.comparison import Comparison, Pair
from demo.examples import GENERAL_QUESTIONS, page_examples
from serve.options import GenerationOptions

TITLE = "comp-export"
MAX_NEW_TOKENS = 64
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
Shown = tuple[str, str, str, str]  # the two cards, the bars, the kept tokens


def build_page(pair: Pair) -> gr.Blocks:
    """The page for a pair of engines; start it with ``launch_options``."""
    examples = page_examples()
    first = examples[0]
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(cards.header(pair))
        chosen = gr.State(0)  # which example is shown; None for the visitor's own picture
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                picture = gr.Image(
                    first.image,
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    show_label=False,
                    height=300,
                    buttons=[],
                    elem_id="ce-picture",
                )
                # The engine reads the file itself: Gradio would convert it, and fail without a word.
                picture.preprocess = _path_of
                gallery = gr.Gallery(
                    [example.image for example in examples],
                    columns=6,
                    allow_preview=False,
                    show_label=False,
                    interactive=False,
                    buttons=[],
                    height="auto",
                    format="png",
                    elem_id="ce-gallery",
                )
                with gr.Row(equal_height=True):
                    question = gr.Textbox(
                        first.questions[0][0],
                        show_label=False,
                        container=False,
                        placeholder="Ask about the picture",
                        lines=1,
                        max_lines=3,
                        scale=5,
                        min_width=160,
                        elem_id="ce-question",
                    )
                    ask = gr.Button(
                        "Ask", variant="primary", scale=1, min_width=70, elem_id="ce-ask"
                    )
                chips = gr.Radio(
                    [text for text, _ in first.questions],
                    show_label=False,
                    container=False,
                    elem_id="ce-chips",
                )
                keep = gr.Slider(
                    0.25,
                    2.0,
                    1.0,
                    step=0.05,
                    label="Tokens kept, × the plan's",
                    visible=pair.can_scale,
                    elem_id="ce-keep",
                    buttons=[],
                )
            with gr.Column(scale=7, min_width=320):
                start = _shown(pair, Comparison(), None)
                with gr.Row(elem_id="ce-cards", equal_height=True):
                    with gr.Column(min_width=270):
                        dense = gr.HTML(start[0], elem_id="ce-dense")
                    with gr.Column(min_width=270):
                        compressed = gr.HTML(start[1], elem_id="ce-compressed")
                bars = gr.HTML(start[2], elem_id="ce-bars")
                kept = gr.HTML(start[3], elem_id="ce-kept")
        shown = [dense, compressed, bars, kept]

        def answer(
            image: str | None, text: str, example: int | None, factor: float
        ) -> Iterator[Shown]:
            yield from _answer(pair, image, text, example, factor)

        asked: dict[str, Any] = {
            "fn": answer,
            "inputs": [picture, question, chosen, keep],
            "outputs": shown,
            "show_progress": "hidden",
            "concurrency_limit": 1,  # two visitors' clocks must not run at once
            "concurrency_id": "engines",
            "trigger_mode": "once",
        }
        ask.click(**asked)
        question.submit(**asked)
        chips.select(lambda text: text, chips, question, show_progress="hidden").then(**asked)
        gallery.select(
            _choose_example, None, [picture, question, chips, chosen], show_progress="hidden"
        )
        picture.upload(_own_picture, None, [question, chips, chosen], show_progress="hidden")
        picture.clear(lambda: None, None, chosen, show_progress="hidden")
    return page


def launch_options() -> dict[str, Any]:
    """Look and privacy of the page, as arguments of ``Blocks.launch``: nothing is fetched."""
    theme = gr.themes.Base(
        font=FONTS,
        font_mono=["ui-monospace", "monospace"],
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
    )
    return {
        "theme": theme,
        "css": (files("demo") / "style.css").read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "max_file_size": "64mb",
        "quiet": True,
    }


def _answer(
    pair: Pair, image: str | None, text: str, example: int | None, factor: float
) -> Iterator[Shown]:
    """Both answers as they come; then the bars and the kept tokens."""
    if image is None:
        gr.Warning("Choose one of the pictures or upload one.", title="No picture")
        yield _shown(pair, Comparison(), None)
        return
    expected = None if example is None else page_examples()[example].answer_to(text)
    options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS, keep_factor=factor)
    try:
        now = Comparison()
        for now in pair.compare(image, text, options):
            yield _shown(pair, now, expected)
        if now.compressed.generation is not None:
            view, pictures = pair.kept_pictures(image, now.compressed.generation)
            yield (*_shown(pair, now, expected)[:3], cards.kept_row(view, pictures))
    except CompExportError as error:
        words = str(error).replace(image, Path(image).name)
        gr.Warning(cards.plain(words), title="Not possible")
        yield _shown(pair, Comparison(), None)


def _shown(pair: Pair, now: Comparison, expected: str | None) -> Shown:
    manifests = pair.manifests
    first = cards.answer_card(now.dense, manifests["dense"], manifests["dense"], expected)
    second = cards.answer_card(
        now.compressed, manifests["compressed"], manifests["dense"], expected
    )
    return first, second, cards.bars(now), cards.kept_nothing_yet(now)


def _path_of(payload: Any) -> str | None:
    """The file of an uploaded picture, as it was uploaded."""
    return None if payload is None else payload.path


def _choose_example(event: gr.SelectData) -> tuple[Any, str, Any, int]:
    example = page_examples()[event.index]
    texts = [text for text, _ in example.questions]
    return example.image, texts[0], gr.Radio(choices=texts, value=None), event.index


def _own_picture() -> tuple[str, Any, None]:
    texts = list(GENERAL_QUESTIONS)
    return texts[0], gr.Radio(choices=texts, value=None), None
