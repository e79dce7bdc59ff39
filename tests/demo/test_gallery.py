"""Pictures that are embedded once rank as if embedded for each request: CLIP and BLIP."""

import numpy as np
import pytest

from comp.data.emoji_scenes.captions import CaptionExamples
from comp.errors import CompExportError
from demo.cards.kept_tokens import KeptView
from demo.gallery import Gallery
from demo.views.retrieval import MOST_CANDIDATES, check_candidates

PAIRS = [CaptionExamples("test", 8)[index] for index in range(8)]
PICTURES = [pair.image for pair in PAIRS]
CAPTIONS = [pair.answer for pair in PAIRS]


@pytest.fixture(scope="module", params=["clip", pytest.param("retrieval", marks=pytest.mark.slow)])
def engine(request, pair_of):
    return pair_of(request.param).compressed


@pytest.fixture(scope="module")
def gallery(engine):
    return Gallery(engine, PICTURES, CAPTIONS)


def test_a_search_ranks_as_the_engine(engine, gallery):
    ranking = engine.rank(PICTURES, CAPTIONS[2:3])
    result = gallery.search(CAPTIONS[2])
    assert np.allclose(result.scores, ranking.of_images[0], atol=1e-4)
    assert result.order.tolist() == ranking.of_images[0].argsort(kind="stable")[::-1].tolist()
    assert result.candidates_ms is None
    assert result.gallery_ms == gallery.pictures_ms
    assert min(result.query_ms, result.ranking_ms, *result.gallery_ms, gallery.captions_ms) > 0


@pytest.mark.parametrize("captions", [CAPTIONS, ["a fox.", CAPTIONS[3], "a wheel at the top."]])
def test_a_description_ranks_as_the_engine(engine, gallery, captions):
    ranking = engine.rank(PICTURES[3:4], captions)
    result = gallery.describe(PICTURES[3], captions)
    assert np.allclose(result.scores, ranking.of_texts[0], atol=1e-4)
    assert (result.candidates_ms is None) == (captions is CAPTIONS)
    assert np.allclose(result.shares, ranking.probabilities(0), atol=1e-4)
    for (_, once), (_, now) in zip(result.kept.seen(), ranking.kept.seen(), strict=True):
        assert once.tolist() == now.tolist()


def test_the_gallery_is_not_embedded_again(engine, gallery, monkeypatch):
    def again(images):
        raise AssertionError("embedded again")

    monkeypatch.setattr(type(engine), "embed_images", again)
    best = int(gallery.search("a fox.").order[0])
    kept = gallery.search("a fox.").kept
    view = KeptView.of(engine.manifest, PICTURES[best], kept, best)
    assert view.places > 0
    assert all(0 < picture.kept < picture.of for picture in view.pictures)


def test_bad_candidates_are_refused(gallery):
    with pytest.raises(CompExportError, match="no candidate captions: write at least one"):
        check_candidates([])
    with pytest.raises(CompExportError, match=f"give at most {MOST_CANDIDATES} here"):
        check_candidates(["a fox"] * (MOST_CANDIDATES + 1))
    check_candidates(["a fox"] * MOST_CANDIDATES)
    with pytest.raises(CompExportError, match="positions: shorten it"):
        gallery.search("fox " * 300)
