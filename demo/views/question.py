"""The view for questions about a picture: LLaVA, BLIP."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from demo.cards.answer import AnswerFace
from demo.cards.base import Shown
from demo.cards.kept_tokens import KeptView
from demo.comparison import answering
from demo.examples import GENERAL_QUESTIONS, page_examples
from demo.gate import chosen_of
from demo.pair import Pair
from demo.widgets import (
    QUIETLY,
    Submission,
    chip_list,
    chips_of,
    picture_gallery,
    picture_input,
    request,
    result_column,
    words_and_button,
)
from serve.engines.blip_generator import BlipGenerator
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import Generation

MAX_NEW_TOKENS = 64


def build(pair: Pair[Engine] | Pair[BlipGenerator]) -> None:
    """Add the view to the page being built."""
    examples = page_examples()
    first = examples[0]
    chosen = gr.State(0)  # which example is shown; None for the visitor's own picture
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            picture = picture_input(first.image, "ce-picture")
            gallery = picture_gallery([example.image for example in examples])
            question, ask = words_and_button(first.questions[0][0], "Ask about the picture", "Ask")
            chips = chip_list([text for text, _ in first.questions])
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
        shown = result_column(pair, AnswerFace())

    def answer(image: str | None, text: str, example: int | None, factor: float) -> Iterator[Shown]:
        yield from _answer(pair, image, text, example, factor)

    event = request(answer, [picture, question, chosen, keep], shown)
    ask.click(**event)
    question.submit(**event)
    chips.select(lambda text: text, chips, question, **QUIETLY).then(**event)
    gallery.select(_choose_example, None, [picture, question, chips, chosen], **QUIETLY)
    picture.upload(_own_picture, None, [question, chips, chosen], **QUIETLY)
    picture.clear(lambda: None, None, chosen, **QUIETLY)


def _answer(
    pair: Pair[Engine] | Pair[BlipGenerator],
    image: str | None,
    text: str,
    example: int | None,
    factor: float,
) -> Iterator[Shown]:
    """Both answers as they are generated; then the bars and the kept tokens."""
    expected = None if example is None else page_examples()[example].answer_to(text)
    options = GenerationOptions(max_new_tokens=MAX_NEW_TOKENS, keep_factor=factor)

    def kept(done: Generation) -> list[KeptView]:
        return [KeptView.of(pair.compressed.manifest, image or "", done.kept)]

    submission = Submission(pair, AnswerFace(expected), [image])
    yield from submission.shown(answering(pair, image or "", text, options), kept)


def _choose_example(event: gr.SelectData) -> tuple[Any, str, Any, int]:
    index = chosen_of(event, page_examples())
    example = page_examples()[index]
    texts = [text for text, _ in example.questions]
    return example.image, texts[0], chips_of(texts), index


def _own_picture() -> tuple[str, Any, None]:
    return GENERAL_QUESTIONS[0], chips_of(GENERAL_QUESTIONS), None
