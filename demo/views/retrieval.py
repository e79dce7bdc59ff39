"""The view for retrieval, pictures for a caption and captions for a picture: CLIP, BLIP."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from comp.data.images import ImageSource
from comp.errors import CompExportError
from demo.cards.base import NAMES, Shown
from demo.cards.base import shown as parts
from demo.cards.html import milliseconds
from demo.cards.kept_tokens import KeptView, data_uri
from demo.cards.ranking import RankingFace
from demo.comparison import Comparison, at_once
from demo.examples import PageGallery, page_gallery
from demo.gallery import Gallery, RankedCandidates
from demo.gate import MAX_TEXT, chosen_of
from demo.pair import Pair
from demo.widgets import (
    NO_PICTURE,
    QUIETLY,
    Submission,
    check_upload,
    chip_list,
    picture_gallery,
    picture_input,
    request,
    result_column,
    scrolls,
    when_loaded,
    words_and_button,
)
from serve.artifacts import BOTH, Which
from serve.engines.retriever import Retriever

CHIPS = 4
EMBEDDINGS = 3  # of the gallery by each model, in turn
THUMBNAIL = 112  # pixels
MOST_CANDIDATES = 200


@dataclass(frozen=True)
class _Search:
    """Both models and the gallery as each of them embeds it."""

    pair: Pair[Retriever]
    known: PageGallery
    embedded: dict[Which, Gallery]
    thumbnails: tuple[str, ...]

    @classmethod
    def prepare(cls, pair: Pair[Retriever]) -> "_Search":
        known = page_gallery()
        embedded = {
            which: Gallery(pair.engine(which), known.pictures, known.captions) for which in BOTH
        }
        for _ in range(EMBEDDINGS - 1):
            for gallery in embedded.values():
                gallery.embed_pictures()
        return cls(pair, known, embedded, tuple(map(_thumbnail, known.pictures)))

    def pictures_for(self, caption: str) -> Iterator[Shown]:
        """Rank the gallery's pictures for a caption."""
        face = RankingFace(self.known.captions, self.known.place_of(caption), self.thumbnails)
        submission = Submission(self.pair, face)
        if not caption.strip():
            yield submission.refused("Write what the picture should show, or pick a caption.")
            return

        def kept(result: RankedCandidates) -> list[KeptView]:
            best = int(result.order[0])
            picture = self.known.pictures[best]
            manifest = self.pair.compressed.manifest
            return [KeptView.of(manifest, picture, result.kept, best, "its first picture")]

        work = at_once(lambda which: self.embedded[which].search(caption))
        yield from submission.shown(work, kept)

    def captions_for(
        self, picture: ImageSource, captions: Sequence[str], right: int | None, file: str | None
    ) -> Iterator[Shown]:
        """Rank captions for a picture; ``file`` is its path if the visitor uploaded it."""
        face = RankingFace(captions, right)

        def kept(result: RankedCandidates) -> list[KeptView]:
            return [KeptView.of(self.pair.compressed.manifest, picture, result.kept)]

        work = at_once(lambda which: self.embedded[which].describe(picture, captions))
        submission = Submission(self.pair, face, [file] if file else [], file is not None)
        yield from submission.shown(work, kept)


def build(pair: Pair[Retriever], _: Any) -> None:
    """Embed the gallery and add the view to the page being built."""
    search = _Search.prepare(pair)
    known = search.known
    chosen = gr.State(None)  # which picture of the gallery is described; None for the visitor's own
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            gr.HTML('<h2 class="ce-step">Find a picture by its caption</h2>')
            caption, ask = words_and_button(known.captions[0], "Describe a picture", "Search")
            chips = chip_list(known.captions[:CHIPS], ["ce-lines"])
            gr.HTML('<h2 class="ce-step">Or click a picture to find its caption</h2>')
            gallery = picture_gallery(known.pictures, 8, ["ce-asks", "ce-many"])
            gr.HTML(_embedding_times(search), elem_id="ce-embedding")
            with gr.Accordion("Your own picture, other captions", open=False, elem_id="ce-own"):
                picture = picture_input(None, "ce-picture", 170)
                candidates = gr.Textbox(
                    "\n".join(known.captions),
                    label="Candidate captions, one a line",
                    lines=5,
                    max_lines=8,
                    max_length=MAX_TEXT,
                    elem_id="ce-candidates",
                )
                rank = gr.Button("Rank captions", elem_id="ce-rank")
        shown = result_column(pair, RankingFace((), pictures=()))

    event = request(search.pictures_for, [caption], shown)
    when_loaded(event)
    ask.click(**event)
    caption.submit(**event)
    chips.select(lambda text: text, chips, caption, **QUIETLY).then(**event)

    def describe(file: str | None, number: int | None, lines: str) -> Iterator[Shown]:
        yield from _describe(search, file, number, lines)

    described = request(describe, [picture, chosen, candidates], shown)
    rank.click(**described)
    gallery.select(_choose_picture, None, [chosen, picture], **QUIETLY).then(**described)

    def cleared() -> tuple[Any, ...]:
        return None, *parts(pair, RankingFace((), pictures=()), Comparison())

    def own(path: str | None) -> tuple[Any, ...]:
        check_upload(path)
        return cleared()

    none = [chosen, *shown]
    uploaded = picture.upload(own, picture, none, **QUIETLY)
    uploaded.success(**described)
    uploaded.failure(lambda: (None, *cleared()), None, [picture, *none], **QUIETLY)
    scrolls(ask.click, caption.submit, chips.select, rank.click, gallery.select)


def _describe(search: _Search, file: str | None, number: int | None, lines: str) -> Iterator[Shown]:
    """Rank captions for the visitor's own picture, or for one of the gallery."""
    captions = [line.strip() for line in lines.splitlines() if line.strip()]
    submission = Submission(search.pair, RankingFace(captions))
    try:
        check_candidates(captions)
    except CompExportError as error:
        yield submission.refused(str(error))
        return
    if file is not None:
        yield from search.captions_for(file, captions, None, file)
    elif number is None:
        yield submission.refused(NO_PICTURE)
    else:
        own = search.known.captions[number]
        right = captions.index(own) if own in captions else None
        yield from search.captions_for(search.known.pictures[number], captions, right, None)


def check_candidates(captions: Sequence[str]) -> None:
    """Refuse an empty list of captions, and more than a page should rank.

    Raises:
        CompExportError: names the number.
    """
    if not captions:
        raise CompExportError("no candidate captions: write at least one, one a line")
    if len(captions) > MOST_CANDIDATES:
        raise CompExportError(
            f"{len(captions)} candidate captions: give at most {MOST_CANDIDATES} here, more with "
            "`comp-export run`"
        )


def _choose_picture(event: gr.SelectData) -> tuple[int, None]:
    return chosen_of(event, page_gallery().pictures), None


def _thumbnail(picture: Image.Image) -> str:
    return data_uri(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS))


def _embedding_times(search: _Search) -> str:
    """The time of embedding at the start, which no clock of a search includes."""
    count = len(search.known.pictures)
    times = ", ".join(
        f"{NAMES[which].lower()} {milliseconds(float(np.median(each.pictures_ms)))} + "
        f"{milliseconds(each.captions_ms)} ms"
        for which, each in search.embedded.items()
    )
    return (
        f'<p class="ce-quiet">{count} pictures + {count} captions, embedded once when the page '
        f"started: {times}.</p>"
    )
