"""Retrieval of an artifact: R@1, R@5 and R@10 both ways, in galleries of so many candidates."""

from collections.abc import Callable, Sequence
from typing import Protocol

from comp.data.example import Example
from comp.data.recall import DEPTHS, ranks_of_images, ranks_of_texts, recall_at
from serve.encoder.retriever import Retriever
from serve.scores import Evaluation, Score

METRIC = "R@1, both ways"
TEXTS, IMAGES = "texts of an image", "images of a text"


class Pairs(Protocol):
    """Images with a text each, as the answers of examples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


def evaluate_retrieval(
    engine: Retriever,
    pairs: Pairs,
    gallery: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Rank each image's texts and each text's images; one's own has to come first.

    Args:
        engine: the artifact.
        pairs: read once, in order; neighbours compete.
        gallery: how many compete; what is left over at the end is a smaller gallery.
        advance: told after every gallery how many pairs it had.

    Returns:
        Recall at each depth and way as kinds; their R@1 both ways is the whole. ``predictions`` are, of
        each image and then of each text of a gallery, the place of what came first.
    """
    right: dict[str, int] = {}
    total = 0
    first: list[str] = []
    for begin in range(0, len(pairs), gallery):
        members = [pairs[index] for index in range(begin, min(begin + gallery, len(pairs)))]
        ranking = engine.rank([pair.image for pair in members], [pair.answer for pair in members])
        own = range(len(members))
        places = {
            TEXTS: ranks_of_images(ranking.of_texts, own),
            IMAGES: ranks_of_texts(ranking.of_images, own),
        }
        for way, found in places.items():
            for depth in DEPTHS:
                kind = f"R@{depth}, {way}"
                right[kind] = right.get(kind, 0) + recall_at(found, depth)
        for scores in (ranking.of_texts, ranking.of_images):
            first += [str(place) for place in scores.argmax(1)]
        total += len(members)
        advance(len(members))
    return _evaluation(right, total, first)


def _evaluation(right: dict[str, int], total: int, first: Sequence[str]) -> Evaluation:
    both = sum(right[f"R@1, {way}"] for way in (TEXTS, IMAGES))
    kinds = {kind: Score(hits, total) for kind, hits in right.items()}
    return Evaluation(Score(both, 2 * total), kinds, tuple(first), METRIC)
