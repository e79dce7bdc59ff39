"""The view for captions: BLIP."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import gradio as gr

from demo.cards.base import Shown
from demo.cards.base import shown as parts
from demo.cards.caption import CaptionFace
from demo.cards.html import plain
from demo.cards.kept_tokens import KeptView
from demo.comparison import Comparison, answering
from demo.examples import BEGINNINGS, page_captions
from demo.gate import chosen_of
from demo.pair import Pair
from demo.remote.generator import RemoteGenerator
from demo.widgets import (
    QUIETLY,
    Submission,
    check_upload,
    chip_list,
    chips_of,
    keep_typed,
    picture_gallery,
    picture_input,
    request,
    result_column,
    scrolls,
    when_loaded,
    words_and_button,
)
from serve.engines.blip_generator import BlipGenerator
from serve.generation.options import GenerationOptions
from serve.generation.results import Generation

MAX_NEW_TOKENS = 64
CaptionPair: TypeAlias = Pair[BlipGenerator] | Pair[RemoteGenerator]


def build(pair: CaptionPair, _: Any) -> None:
    """Add the view to the page being built."""
    examples = page_captions()
    chosen = gr.State(0)  # which example is shown; None for the visitor's own picture
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            picture = picture_input(examples[0].image, "ce-picture")
            gallery = picture_gallery([example.image for example in examples])
            beginning, ask = words_and_button("", "Begins with … (or leave it empty)", "Describe")
            chips = chip_list(BEGINNINGS)
            reference = gr.HTML(_reference(0), elem_id="ce-reference")
        shown = result_column(pair, CaptionFace())

    def describe(image: str | None, begins: str, example: int | None) -> Iterator[Shown]:
        yield from _describe(pair, image, begins, example)

    def cleared() -> tuple[Any, ...]:
        return _reference(None), None, *parts(pair, CaptionFace(), Comparison())

    def choose(event: gr.SelectData, typed: str) -> tuple[Any, ...]:
        return *_choose_example(event, typed), *cleared()[2:]

    def own(image: str | None) -> tuple[Any, ...]:
        check_upload(image)
        return cleared()

    event = request(describe, [picture, beginning, chosen], shown)
    runs = [
        when_loaded(event),
        ask.click(**event),
        beginning.submit(**event),
        chips.select(lambda text: text, chips, beginning, **QUIETLY).then(**event),
    ]
    scrolls(ask.click, beginning.submit, chips.select)
    stop: dict[str, Any] = {"cancels": runs, **QUIETLY}
    none = [reference, chosen, *shown]
    gallery.select(choose, beginning, [picture, beginning, chips, *none], **stop)
    uploaded = picture.upload(own, picture, none, **stop)
    uploaded.failure(lambda: (None, *cleared()), None, [picture, *none], **QUIETLY)
    picture.clear(cleared, None, none, **stop)


def _describe(
    pair: CaptionPair, image: str | None, begins: str, example: int | None
) -> Iterator[Shown]:
    """Both captions as they are generated; then the bars and the kept tokens."""
    names = None if example is None else page_captions()[example].names
    options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS)

    def kept(done: Generation) -> list[KeptView]:
        return [KeptView.of(pair.compressed.manifest, image or "", done.kept)]

    submission = Submission(pair, CaptionFace(names, begins.strip()), [image], example is None)
    yield from submission.shown(answering(pair, image or "", begins, options), kept)


def _choose_example(event: gr.SelectData, typed: str) -> tuple[Any, str, Any, str, int]:
    index = chosen_of(event, page_captions())
    image = page_captions()[index].image
    words = keep_typed(typed, BEGINNINGS, "")
    return image, words, chips_of(BEGINNINGS), _reference(index), index


def _reference(example: int | None) -> str:
    """Return the objects that are known to be in the picture."""
    if example is None:
        return ""
    caption = plain(page_captions()[example].captions[0])
    return f'<p class="ce-reference"><b>Known to be there:</b> {caption}</p>'
