"""Widgets of the views: Gradio's components with our settings."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.context import Context
from PIL import Image

from comp.data.images import read_image
from comp.errors import CompExportError
from demo.cards import base as cards
from demo.cards.base import Face, Shown
from demo.cards.kept_tokens import KeptView
from demo.comparison import Comparison, Work, in_turn
from demo.gate import MAX_TEXT, not_possible
from demo.likeness import notice
from demo.pair import Pair

R = TypeVar("R")
# For events that only prepare a request; they are not part of the page's API.
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
NO_PICTURE = "Choose one of the pictures or upload one."
# On a phone the answers are below the question.
SCROLL = """() => {
  if (window.innerWidth < 760)
    document.querySelector("#ce-remarks").scrollIntoView({behavior: "smooth", block: "start"});
}"""


def picture_input(
    first: Image.Image | None, name: str, height: int = 300, label: str = "Picture"
) -> Any:
    """A component to show, drop or paste a picture; its value is the uploaded file's path."""
    picture = gr.Image(
        first,
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        label=label,
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
        label="Pictures to choose from",
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
            label=placeholder,
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
        label="Texts to choose from",
        show_label=False,
        container=False,
        elem_id="ce-chips",
        elem_classes=list(classes),
    )


def chips_of(texts: Sequence[str]) -> Any:
    """An update with other texts to choose from."""
    return gr.Radio(choices=list(texts), value=None)


def result_column(pair: Pair[Any], face: Face[Any]) -> list[Any]:
    """The right half of every view: both cards, the bars, the kept tokens; above them the remarks."""
    start = cards.shown(pair, face, Comparison())
    with gr.Column(scale=7, min_width=320):
        said = gr.HTML(start[4], elem_id="ce-remarks")
        with gr.Row(elem_id="ce-cards", equal_height=True):
            with gr.Column(min_width=270):
                dense = gr.HTML(start[0], elem_id="ce-dense")
            with gr.Column(min_width=270):
                compressed = gr.HTML(start[1], elem_id="ce-compressed")
        bars = gr.HTML(start[2], elem_id="ce-bars")
        kept = gr.HTML(start[3], elem_id="ce-kept")
    return [dense, compressed, bars, kept, said]


def keep_typed(typed: str, offered: Collection[str], new: str) -> str:
    """Return a new text for the box, or what a visitor typed there: anything that was not offered."""
    words = typed.strip()
    return new if not words or words in offered else typed


def check_upload(path: str | None) -> None:
    """Read an uploaded picture whole, so that a bad one is refused at once.

    Raises:
        gradio.Error: names what is wrong; it is shown to the visitor.
    """
    if path is None:
        return
    try:
        read_image(path)
    except CompExportError as error:
        raise not_possible(str(error).replace(path, Path(path).name)) from error


def when_loaded(event: dict[str, Any]) -> Any:
    """Send a request when a visitor opens the page."""
    page = Context.root_block
    assert page is not None
    # The API keeps the name of the request for those that a visitor sends.
    return page.load(**{**event, "api_name": "first", "api_visibility": "private"})


def scrolls(*triggers: Callable[..., Any]) -> None:
    """On a phone, scroll to the answers when one of these events happens."""
    for trigger in triggers:
        trigger(None, None, None, js=SCROLL, **QUIETLY)


def request(fn: Callable[..., Iterator[Shown]], inputs: list[Any], shown: list[Any]) -> Any:
    """Arguments of an event that runs both models."""
    return {
        "fn": fn,
        "inputs": inputs,
        "outputs": shown,
        "show_progress": "hidden",
        "concurrency_limit": 1,  # two visitors' requests must not be timed at once
        "concurrency_id": "engines",
        "trigger_mode": "always_last",
    }


@dataclass(frozen=True)
class Submission:
    """One visitor's request.

    Attributes:
        pair: the models.
        face: shows the results.
        files: paths of uploaded pictures, ``None`` if one is missing; errors show only their names.
        own: whether they are the visitor's, whose likeness to the model's data is tested.
    """

    pair: Pair[Any]
    face: Face[Any]
    files: Sequence[str | None] = ()
    own: bool = False

    def shown(self, work: Work[R], kept: Callable[[R], list[KeptView]]) -> Iterator[Shown]:
        """Both results as they come, then the kept tokens; errors are shown as warnings."""
        if None in self.files:
            yield self.refused(NO_PICTURE)
            return
        try:
            unlike = self._unlike()
            panel = ""
            for now in in_turn(work):
                result = now.compressed.result
                if result is not None and not panel:
                    panel = cards.kept_panel(kept(result))
                yield cards.shown(self.pair, self.face, now, unlike, panel)
        except CompExportError as error:
            words = str(error)
            for file in filter(None, self.files):
                words = words.replace(file, Path(file).name)
            yield self.refused(words)

    def _unlike(self) -> str:
        if not self.own:
            return ""
        return notice(self.pair.compressed.manifest.model, [file for file in self.files if file])

    def refused(self, words: str) -> Shown:
        """Show the reason of a refusal, and reset the cards."""
        return cards.refusal(self.pair, self.face, words)
