"""The view for statements about two pictures, true or false: BLIP for NLVR2."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from demo.cards.base import Shown
from demo.cards.base import shown as parts
from demo.cards.kept_tokens import KeptView
from demo.cards.verdict import VerdictFace
from demo.comparison import Comparison, at_once
from demo.examples import page_pairs
from demo.gate import chosen_of
from demo.pair import Pair
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
from serve.artifacts import Which
from serve.engines.blip_judge import Judge, Judgement

SIDES = ("the first picture", "the second picture")


def build(pair: Pair[Judge], _: Any) -> None:
    """Add the view to the page being built."""
    examples = page_pairs()
    first = examples[0]
    chosen = gr.State(0)  # which pair is shown; None when a picture is the visitor's own
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            with gr.Row(equal_height=True, elem_id="ce-two"):
                left = picture_input(first.images[0], "ce-picture", 210, "First picture")
                right = picture_input(first.images[1], "ce-second", 210, "Second picture")
            gallery = picture_gallery(
                [example.side_by_side for example in examples], 3, ["ce-pairs"]
            )
            statement, ask = words_and_button(
                first.statements[0][0], "Say something about both pictures", "Judge"
            )
            chips = chip_list([text for text, _ in first.statements], ["ce-lines"])
        shown = result_column(pair, VerdictFace())

    def judge(
        one: str | None, other: str | None, text: str, example: int | None
    ) -> Iterator[Shown]:
        yield from _judge(pair, one, other, text, example)

    def cleared() -> tuple[Any, ...]:
        # The truth of the pair's statements is unknown for another picture.
        return chips_of([]), None, *parts(pair, VerdictFace(), Comparison())

    def choose(event: gr.SelectData, typed: str) -> tuple[Any, ...]:
        return *_choose_pair(event, typed), *cleared()[2:]

    def own(image: str | None) -> tuple[Any, ...]:
        check_upload(image)
        return cleared()

    event = request(judge, [left, right, statement, chosen], shown)
    runs = [
        when_loaded(event),
        ask.click(**event),
        statement.submit(**event),
        chips.select(lambda text: text, chips, statement, **QUIETLY).then(**event),
    ]
    scrolls(ask.click, statement.submit, chips.select)
    stop: dict[str, Any] = {"cancels": runs, **QUIETLY}
    none = [chips, chosen, *shown]
    gallery.select(choose, statement, [left, right, statement, *none], **stop)
    for picture in (left, right):
        uploaded = picture.upload(own, picture, none, **stop)
        uploaded.failure(lambda: (None, *cleared()), None, [picture, *none], **QUIETLY)
        picture.clear(cleared, None, none, **stop)


def _judge(
    pair: Pair[Judge], one: str | None, other: str | None, text: str, example: int | None
) -> Iterator[Shown]:
    """Both verdicts; then the bars and the kept tokens of both pictures."""
    truth = None if example is None else page_pairs()[example].truth_of(text)
    images = (one or "", other or "")

    def verdict(which: Which) -> Judgement:
        return pair.engine(which).judge(images, text)

    def kept(done: Judgement) -> list[KeptView]:
        manifest = pair.compressed.manifest
        return [
            KeptView.of(manifest, image, done.kept, number, SIDES[number])
            for number, image in enumerate(images)
        ]

    submission = Submission(pair, VerdictFace(truth), [one, other], example is None)
    yield from submission.shown(at_once(verdict), kept)


def _choose_pair(event: gr.SelectData, typed: str) -> tuple[Any, Any, str, Any, int]:
    index = chosen_of(event, page_pairs())
    example = page_pairs()[index]
    texts = [text for text, _ in example.statements]
    known = {text for each in page_pairs() for text, _ in each.statements}
    return *example.images, keep_typed(typed, known, texts[0]), chips_of(texts), index
