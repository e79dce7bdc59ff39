"""BLIP's retrieval: likely candidates by embeddings, ordered by how well text and image match."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from comp.images import ImageSource
from serve.encoder.engine import kept_of, ms_since
from serve.encoder.retriever import BATCH, Ranking, Retriever
from serve.encoder.texts import by_length
from serve.results import Timings, TowerKept

MATCHED = 16  # candidates that embeddings find likeliest and matching then orders
BEHIND = 100.0  # how far the others stay behind those
Pairs = list[tuple[int, int]]  # image, text


class BlipRetriever(Retriever):
    """Ranks by the matching head, which reads a text while it looks at the image.

    As BLIP does it: embeddings choose the likeliest candidates, and their order is that of matching
    score plus cosine. The others follow, in the order of their cosines.
    """

    def rank(
        self, images: Sequence[ImageSource], texts: Sequence[str], matched: int = MATCHED
    ) -> Ranking:
        """Rank every text for every image, and the other way round.

        Args:
            images, texts: as ``Retriever.rank``.
            matched: how many of the likeliest candidates are matched.

        Raises:
            CompExportError: as ``Retriever.rank``.
        """
        if not images or not texts:
            missing = "image" if not images else "candidate texts"
            raise CompExportError(f"no {missing}: give at least one")
        start = perf_counter()
        pixels = [
            self.pixels(images[first : first + BATCH]) for first in range(0, len(images), BATCH)
        ]
        prepare_ms = ms_since(start)
        start = perf_counter()
        seen = [self.graphs.run("vision_model", {"pixel_values": each}) for each in pixels]
        states = np.concatenate([each["last_hidden_state"] for each in seen])
        embeds = np.concatenate([each["image_embeds"] for each in seen])
        vision_ms = ms_since(start)
        start = perf_counter()
        read = self.embed_texts(texts)
        cosines = embeds @ read.embeds.T  # [I, T]
        of_texts, of_images = _likely(cosines, matched), _likely(cosines.T, matched)
        pairs = sorted({*of_texts, *((image, text) for text, image in of_images)})
        scores = dict(zip(pairs, self._match(pairs, states, texts), strict=True))
        return Ranking(
            _final(cosines, {pair: scores[pair] for pair in of_texts}),
            _final(cosines.T, {(text, image): scores[image, text] for text, image in of_images}),
            TowerKept(kept_of("vision", seen) | read.kept),
            Timings(prepare_ms, vision_ms, ms_since(start)),
        )

    def _match(
        self, pairs: Pairs, states: NDArray[np.float32], texts: Sequence[str]
    ) -> list[float]:
        """How well each pair matches: the matching head's logit of a match."""
        ids = [self.texts.encode(texts[text], "candidate") for _, text in pairs]
        found = [0.0] * len(pairs)
        for places, batch in by_length(ids, BATCH):
            looked = states[[pairs[place][0] for place in places]]
            feeds: dict[str, NDArray[Any]] = {"input_ids": batch, "encoder_hidden_states": looked}
            logits = self.graphs.run("itm_model", feeds)["logits"]
            for place, row in zip(places, logits, strict=True):
                found[place] = float(row[1])
        return found


def _likely(cosines: NDArray[np.float32], count: int) -> Pairs:
    """Of each row its likeliest columns, as pairs."""
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [(row, int(column)) for row, columns in enumerate(best) for column in columns]


def _final(
    cosines: NDArray[np.float32], matched: dict[tuple[int, int], float]
) -> NDArray[np.float32]:
    """Matching score plus cosine of what was matched; the others behind, by their cosines."""
    scores = cosines - np.float32(BEHIND)
    for (row, column), score in matched.items():
        scores[row, column] = score + cosines[row, column]
    return scores
