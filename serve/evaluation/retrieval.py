"""Evaluate retrieval: R@1, R@5 and R@10 in both directions, in galleries of fixed size."""

from collections.abc import Callable, Sequence

from comp.data.example import Example
from comp.metrics.recall import DEPTHS, ranks_of_images, ranks_of_texts, recall_at
from serve.engines.retriever import Retriever
from serve.evaluation.scores import (
    Evaluation,
    Examples,
    Figure,
    Measure,
    MeasureOptions,
    Score,
)

METRIC = "R@1, both ways"
TEXTS, IMAGES = "texts of an image", "images of a text"


def evaluate_retrieval(
    engine: Retriever,
    pairs: Examples[Example],
    gallery: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Rank each image's texts and each text's images; the item's own should come first.

    Args:
        engine: the artifact.
        pairs: read once, in order; neighbours form a gallery. An image has the texts of ``answers``, or
            ``answer``.
        gallery: number of pairs ranked together; the last gallery may be smaller.
        advance: called after every gallery with its number of pairs.

    Returns:
        Recall at each depth and direction as kinds, R@1 of both directions as the overall figure.
        ``predictions`` are the indices ranked first, for each image and then each text of a gallery.
    """
    right: dict[str, int] = {}
    counts_of: dict[str, int] = {}
    first: list[str] = []
    for begin in range(0, len(pairs), gallery):
        members = [pairs[index] for index in range(begin, min(begin + gallery, len(pairs)))]
        texts_of = [pair.answers or (pair.answer,) for pair in members]
        owner = [number for number, texts in enumerate(texts_of) for _ in texts]
        texts = [text for each in texts_of for text in each]
        ranking = engine.rank([pair.image for pair in members], texts)
        places = {
            TEXTS: ranks_of_images(ranking.of_texts, owner),
            IMAGES: ranks_of_texts(ranking.of_images, owner),
        }
        for way, ranks in places.items():
            for depth in DEPTHS:
                kind = f"R@{depth}, {way}"
                right[kind] = right.get(kind, 0) + recall_at(ranks, depth)
                counts_of[kind] = counts_of.get(kind, 0) + len(ranks)
        for scores in (ranking.of_texts, ranking.of_images):
            first += [str(place) for place in scores.argmax(1)]
        advance(len(members))
    return _evaluation(right, counts_of, first)


def _evaluation(
    right: dict[str, int], counts_of: dict[str, int], first: Sequence[str]
) -> Evaluation:
    both, n = (
        sum(counts[f"R@1, {way}"] for way in (TEXTS, IMAGES)) for counts in (right, counts_of)
    )
    kinds: dict[str, Figure] = {kind: Score(hits, counts_of[kind]) for kind, hits in right.items()}
    return Evaluation(Score(both, n), kinds, tuple(first), METRIC)


def measure(options: MeasureOptions) -> Measure:
    """The measure of an engine's rankings."""
    return Measure(
        f"{METRIC}, among {options.gallery}",
        lambda engine, examples, advance: evaluate_retrieval(
            engine, examples, options.gallery, advance
        ),
    )
