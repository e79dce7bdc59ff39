"""BLIP's retrieval: embeddings select the likeliest candidates, the matching head orders them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engines.encoder_texts import by_length
from serve.engines.retriever import BATCH, EmbeddedImages, EmbeddedTexts, Retriever
from serve.generation.finite import check_finite

MATCHED = 16  # candidates that embeddings select for the matching head
BEHIND = 100.0  # subtracted from the scores of all others
Pairs = list[tuple[int, int]]  # image, text


class BlipRetriever(Retriever):
    """Ranks with the matching head, which encodes a text with cross-attention to the image.

    As in BLIP: embeddings select the likeliest candidates, which are ordered by matching score plus
    cosine. The others follow, ordered by cosine.
    """

    def match(
        self, seen: EmbeddedImages, read: EmbeddedTexts, matched: int = MATCHED
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As ``Retriever.match``; the matching head decides on the likeliest ``matched`` candidates."""
        cosines = seen.embeds @ read.embeds.T  # [I, T]
        of_texts, of_images = _likely(cosines, matched), _likely(cosines.T, matched)
        pairs = sorted({*of_texts, *((image, text) for text, image in of_images)})
        scores = dict(zip(pairs, self.match_pairs(pairs, seen, read), strict=True))
        return (
            _final(cosines, {pair: scores[pair] for pair in of_texts}),
            _final(cosines.T, {(text, image): scores[image, text] for text, image in of_images}),
        )

    def match_pairs(self, pairs: Pairs, seen: EmbeddedImages, read: EmbeddedTexts) -> list[float]:
        """The matching head's logit of a match for each pair of image and text."""
        assert seen.states is not None
        states, ids = seen.states, read.ids
        scores = [0.0] * len(pairs)
        for places, batch in by_length([ids[text] for _, text in pairs], BATCH):
            image_states = states[[pairs[place][0] for place in places]]
            feeds: dict[str, NDArray[Any]] = {
                "input_ids": batch,
                "encoder_hidden_states": image_states,
            }
            logits = self.graphs.run("itm_model", feeds)["logits"]
            check_finite(logits, "the logits of matching", self.manifest.precision)
            for place, row in zip(places, logits, strict=True):
                scores[place] = float(row[1])
        return scores


def _likely(cosines: NDArray[np.float32], count: int) -> Pairs:
    """The likeliest columns of each row, as pairs."""
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [(row, int(column)) for row, columns in enumerate(best) for column in columns]


def _final(
    cosines: NDArray[np.float32], matched: dict[tuple[int, int], float]
) -> NDArray[np.float32]:
    """Matching score plus cosine for matched pairs; all others come after, by cosine."""
    scores = cosines - np.float32(BEHIND)
    for (row, column), score in matched.items():
        scores[row, column] = score + cosines[row, column]
    return scores
