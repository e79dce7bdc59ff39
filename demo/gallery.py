"""Pictures and captions that are embedded once and searched often."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.data.images import ImageSource
from serve.engines.encoder import ms_since
from serve.engines.retriever import EmbeddedImages, EmbeddedTexts, Retriever
from serve.generation.results import TowerKept


@dataclass(frozen=True)
class RankedCandidates:
    """Candidates for a query, best first.

    Attributes:
        order: indices of the candidates.
        scores: logit of each candidate, by its index.
        kept: kept tokens of the gallery's pictures, or of the query picture.
        query_ms: time of embedding the query.
        gallery_ms: times of embedding the gallery's pictures, if they were searched: measured at the
            start.
        candidates_ms: time of embedding the candidates; ``None`` if that was done at the start.
        ranking_ms: time of matching and sorting.
    """

    order: NDArray[np.int64]
    scores: NDArray[np.float32]
    kept: TowerKept
    query_ms: float
    candidates_ms: float | None
    ranking_ms: float
    gallery_ms: tuple[float, ...] = ()

    @property
    def shares(self) -> NDArray[np.float32]:
        """The probability of each candidate, assuming that one of them is right."""
        above: NDArray[np.float32] = np.exp(self.scores - self.scores.max())
        return above / above.sum()

    @property
    def total_ms(self) -> float:
        return self.query_ms + (self.candidates_ms or 0.0) + self.ranking_ms

    def rank(self, place: int) -> int:
        """The rank of a candidate, from 1."""
        return int(np.flatnonzero(self.order == place)[0]) + 1


class Gallery:
    """The pictures and captions as one model embeds them; nothing is embedded twice."""

    def __init__(
        self, engine: Retriever, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> None:
        self.engine = engine
        self.captions = tuple(captions)
        self._pictures = tuple(pictures)
        self.pictures_ms: tuple[float, ...] = ()
        self._seen = self.embed_pictures()
        start = perf_counter()
        self._read = engine.embed_texts(captions)
        self.captions_ms = ms_since(start)

    def embed_pictures(self) -> EmbeddedImages:
        """Embed the pictures; the time is added to ``pictures_ms``."""
        start = perf_counter()
        seen = self.engine.embed_images(self._pictures)
        self.pictures_ms = (*self.pictures_ms, ms_since(start))
        return seen

    def search(self, caption: str) -> RankedCandidates:
        """Rank the pictures for a caption.

        Raises:
            CompExportError: as for ``Retriever.embed_texts``.
        """
        start = perf_counter()
        query = self.engine.embed_texts([caption])
        query_ms = ms_since(start)
        start = perf_counter()
        scores = self.engine.match(self._seen, query)[1][0]
        order = best_first(scores)
        return RankedCandidates(
            order,
            scores,
            TowerKept(self._seen.kept),
            query_ms,
            None,
            ms_since(start),
            self.pictures_ms,
        )

    def describe(self, picture: ImageSource, captions: Sequence[str]) -> RankedCandidates:
        """Rank captions for a picture.

        Raises:
            CompExportError: as for ``Retriever.embed_images`` and ``embed_texts``.
        """
        start = perf_counter()
        query = self.engine.embed_images([picture])
        query_ms = ms_since(start)
        candidates, candidates_ms = self._candidates(captions)
        start = perf_counter()
        scores = self.engine.match(query, candidates)[0][0]
        order = best_first(scores)
        kept = TowerKept(query.kept)
        return RankedCandidates(order, scores, kept, query_ms, candidates_ms, ms_since(start))

    def _candidates(self, captions: Sequence[str]) -> tuple[EmbeddedTexts, float | None]:
        if tuple(captions) == self.captions:
            return self._read, None
        start = perf_counter()
        embedded = self.engine.embed_texts(captions)
        return embedded, ms_since(start)


def best_first(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices by descending score; among equal scores the first comes first."""
    return np.argsort(-scores, kind="stable")
