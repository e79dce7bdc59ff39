"""Retrieval of an artifact: R@1, R@5 and R@10 both ways, in galleries of so many candidates."""

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
    """Rank each image's texts and each text's images; one's own has to come first.

    Args:
        engine: the artifact.
        pairs: read once, in order; neighbours compete. An image has the texts of ``answers``, or ``answer``.
        gallery: how many compete; what is left over at the end is a smaller gallery.
        advance: told after every gallery how many pairs it had.

    Returns:
        Recall at each depth and way as kinds; their R@1 both ways is the whole. ``predictions`` are, of
        each image and then of each text of a gallery, the place of what came first.
    """
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    first: list[str] = []
    for begin in range(0, len(pairs), gallery):
        members = [pairs[index] for index in range(begin, min(begin + gallery, len(pairs)))]
        said = [pair.answers or (pair.answer,) for pair in members]
        owner = [number for number, texts in enumerate(said) for _ in texts]
        texts = [text for each in said for text in each]
        ranking = engine.rank([pair.image for pair in members], texts)
        places = {
            TEXTS: ranks_of_images(ranking.of_texts, owner),
            IMAGES: ranks_of_texts(ranking.of_images, owner),
        }
        for way, found in places.items():
            for depth in DEPTHS:
                kind = f"R@{depth}, {way}"
                right[kind] = right.get(kind, 0) + recall_at(found, depth)
                asked[kind] = asked.get(kind, 0) + len(found)
        for scores in (ranking.of_texts, ranking.of_images):
            first += [str(place) for place in scores.argmax(1)]
        advance(len(members))
    return _evaluation(right, asked, first)


def _evaluation(right: dict[str, int], asked: dict[str, int], first: Sequence[str]) -> Evaluation:
    both, n = (sum(counts[f"R@1, {way}"] for way in (TEXTS, IMAGES)) for counts in (right, asked))
    kinds: dict[str, Figure] = {kind: Score(hits, asked[kind]) for kind, hits in right.items()}
    return Evaluation(Score(both, n), kinds, tuple(first), METRIC)


def measure(options: MeasureOptions) -> Measure:
    """The measure of an engine's rankings."""
    return Measure(
        f"{METRIC}, among {options.gallery}",
        lambda engine, examples, advance: evaluate_retrieval(
            engine, examples, options.gallery, advance
        ),
    )
