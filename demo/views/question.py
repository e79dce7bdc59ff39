"""The view for questions about a picture: LLaVA, BLIP."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import gradio as gr

from demo.cards.answer import AnswerFace
from demo.cards.base import Shown, gmacs, header
from demo.cards.base import shown as parts
from demo.cards.html import plain
from demo.cards.kept_tokens import KeptView
from demo.comparison import Comparison, answering
from demo.examples import GENERAL_QUESTIONS, page_examples
from demo.gate import chosen_of
from demo.keeping import keeping
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
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import Generation

MAX_NEW_TOKENS = 64
AnswerPair: TypeAlias = Pair[Engine] | Pair[BlipGenerator] | Pair[RemoteGenerator]


def build(pair: AnswerPair, head: Any) -> None:
    """Add the view to the page being built; ``head`` shows its header."""
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
                label="Image tokens kept, × the plan's",
                visible=pair.can_scale,
                elem_id="ce-keep",
                buttons=[],
            )
            count = gr.HTML(_tokens_kept(pair), visible=pair.can_scale, elem_id="ce-count")
        shown = result_column(pair, AnswerFace())

    def answer(image: str | None, text: str, example: int | None, factor: float) -> Iterator[Shown]:
        yield from _answer(pair, image, text, example, factor)

    def cleared(factor: float = 1.0) -> Shown:
        return parts(pair.at(factor), AnswerFace(), Comparison())

    def choose(event: gr.SelectData, typed: str, factor: float) -> tuple[Any, ...]:
        return *_choose_example(event, typed), *cleared(factor)

    def own(image: str | None, typed: str, factor: float) -> tuple[Any, ...]:
        check_upload(image)
        return *_own_picture(typed), *cleared(factor)

    def move(factor: float) -> tuple[Any, ...]:
        moved = pair.at(factor)
        return header(moved), _tokens_kept(moved), *cleared(factor)

    event = request(answer, [picture, question, chosen, keep], shown)
    runs = [
        when_loaded(event),
        ask.click(**event),
        question.submit(**event),
        chips.select(lambda text: text, chips, question, **QUIETLY).then(**event),
    ]
    scrolls(ask.click, question.submit, chips.select)
    stop: dict[str, Any] = {"cancels": runs, **QUIETLY}
    examples_shown = [picture, question, chips, chosen, *shown]
    gallery.select(choose, [question, keep], examples_shown, **stop)
    uploaded = picture.upload(own, [picture, question, keep], examples_shown[1:], **stop)
    none = [picture, chosen, *shown]
    uploaded.failure(lambda factor: (None, None, *cleared(factor)), keep, none, **QUIETLY)
    picture.clear(lambda factor: (None, *cleared(factor)), keep, none[1:], **stop)
    keep.change(move, keep, [head, count, *shown], trigger_mode="always_last", **stop)


def _answer(
    pair: AnswerPair,
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

    submission = Submission(pair.at(factor), AnswerFace(expected), [image], example is None)
    yield from submission.shown(answering(pair, image or "", text, options), kept)


def _choose_example(event: gr.SelectData, typed: str) -> tuple[Any, str, Any, int]:
    index = chosen_of(event, page_examples())
    example = page_examples()[index]
    texts = [text for text, _ in example.questions]
    return example.image, keep_typed(typed, _offered(), texts[0]), chips_of(texts), index


def _own_picture(typed: str) -> tuple[str, Any, None]:
    words = keep_typed(typed, _offered(), GENERAL_QUESTIONS[0])
    return words, chips_of(GENERAL_QUESTIONS), None


def _offered() -> set[str]:
    known = {text for example in page_examples() for text, _ in example.questions}
    return known | set(GENERAL_QUESTIONS)


def _tokens_kept(pair: Pair[Any]) -> str:
    """How many image tokens stay at the keep factor, and what a request then costs."""
    if not pair.can_scale:
        return ""
    left = keeping(pair.compressed.manifest, pair.keep_factor)
    tokens = ", ".join(map(str, left.tokens))
    layers = ", ".join(map(str, left.places))
    of = "of a tile's" if pair.compressed.manifest.image_processor.tiles else "of"
    words = f"{tokens} {of} {left.of} image tokens stay after layers {layers}"
    if left.macs is not None and left.share is not None:
        words += f": {gmacs(left.macs)} GMACs, {100 * left.share:.0f} % of the original's"
    return f'<p class="ce-reference">{plain(words)}.</p>'
