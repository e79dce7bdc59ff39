"""Widgets of the views: Gradio's components with our settings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from comp.errors import CompExportError
from demo.cards import base as cards
from demo.cards.base import Face, Shown
from demo.cards.html import plain
from demo.cards.kept_tokens import KeptView
from demo.comparison import Comparison, Work, in_turn
from demo.gate import MAX_TEXT
from demo.pair import Pair

R = TypeVar("R")
# For events that only prepare a request; they are not part of the page's API.
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
NO_PICTURE = "Choose one of the pictures or upload one."


def picture_input(first: Image.Image | None, name: str, height: int = 300) -> Any:
    """A component to show, drop or paste a picture; its value is the uploaded file's path."""
    picture = gr.Image(
        first,
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        show_label=False,
        height=height,
        buttons=[],
        elem_id=name,
        elem_classes="ce-picture",
    )
    # The engine reads the file itself: Gradio (seen: 6.31) would convert it, and
    # fail without a message.
    picture.preprocess = lambda payload: None if payload is None else payload.path
    return picture


def picture_gallery(
    pictures: Sequence[Image.Image], columns: int = 6, classes: Sequence[str] = ()
) -> Any:
    """Pictures to choose from."""
    return gr.Gallery(
        list(pictures),
        columns=columns,
        allow_preview=False,
        show_label=False,
        interactive=False,
        buttons=[],
        height="auto",
        format="png",
        elem_id="ce-gallery",
        elem_classes=list(classes),
    )


def words_and_button(text: str, placeholder: str, button: str) -> tuple[Any, Any]:
    """A text box and a button in one row."""
    with gr.Row(equal_height=True):
        box = gr.Textbox(
            text,
            show_label=False,
            container=False,
            placeholder=placeholder,
            lines=1,
            max_lines=3,
            max_length=MAX_TEXT,
            scale=5,
            min_width=160,
            elem_id="ce-question",
        )
        ask = gr.Button(button, variant="primary", scale=1, min_width=70, elem_id="ce-ask")
    return box, ask


def chip_list(texts: Sequence[str], classes: Sequence[str] = ()) -> Any:
    """Texts to choose from."""
    return gr.Radio(
        list(texts),
        show_label=False,
        container=False,
        elem_id="ce-chips",
        elem_classes=list(classes),
    )


def chips_of(texts: Sequence[str]) -> Any:
    """An update with other texts to choose from."""
    return gr.Radio(choices=list(texts), value=None)


def result_column(pair: Pair[Any], face: Face[Any]) -> list[Any]:
    """The right half of every view: both cards, the bars, the kept tokens."""
    start = cards.shown(pair, face, Comparison())
    with gr.Column(scale=7, min_width=320):
        with gr.Row(elem_id="ce-cards", equal_height=True):
            with gr.Column(min_width=270):
                dense = gr.HTML(start[0], elem_id="ce-dense")
            with gr.Column(min_width=270):
                compressed = gr.HTML(start[1], elem_id="ce-compressed")
        bars = gr.HTML(start[2], elem_id="ce-bars")
        kept = gr.HTML(start[3], elem_id="ce-kept")
    return [dense, compressed, bars, kept]


def request(fn: Callable[..., Iterator[Shown]], inputs: list[Any], shown: list[Any]) -> Any:
    """Arguments of an event that runs both models."""
    return {
        "fn": fn,
        "inputs": inputs,
        "outputs": shown,
        "show_progress": "hidden",
        "concurrency_limit": 1,  # two visitors' requests must not be timed at once
        "concurrency_id": "engines",
        "trigger_mode": "once",
    }


@dataclass(frozen=True)
class Submission:
    """One visitor's request.

    Attributes:
        pair: the models.
        face: shows the results.
        files: paths of uploaded pictures, ``None`` if one is missing; errors show only their names.
    """

    pair: Pair[Any]
    face: Face[Any]
    files: Sequence[str | None] = ()

    def shown(self, work: Work[R], kept: Callable[[R], list[KeptView]]) -> Iterator[Shown]:
        """Both results as they come, then the kept tokens; errors are shown as warnings."""
        if None in self.files:
            yield self.refused(NO_PICTURE, "No picture")
            return
        try:
            now: Comparison[R] = Comparison()
            for now in in_turn(work):
                yield cards.shown(self.pair, self.face, now)
            if now.compressed.result is not None:
                views = kept(now.compressed.result)
                yield (*cards.shown(self.pair, self.face, now)[:3], cards.kept_panel(views))
        except CompExportError as error:
            words = str(error)
            for file in filter(None, self.files):
                words = words.replace(file, Path(file).name)
            yield self.refused(words, "Not possible")

    def refused(self, words: str, title: str) -> Shown:
        """Show the reason of a refusal, and reset the cards."""
        gr.Warning(plain(words), title=title)  # seen in a browser; the cards stay as they were
        return cards.shown(self.pair, self.face, Comparison())
