"""The card of a ranking: pictures for a caption, or captions for a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from demo.cards.base import said
from demo.cards.clock import Clock
from demo.cards.html import chip, percent, plain, tip
from demo.comparison import Side
from demo.gallery import RankedCandidates

SHOWN = 6  # candidates on a card


@dataclass(frozen=True)
class RankingFace:
    """Shows a ranking.

    Attributes:
        captions: the candidates, or the captions of the pictures.
        right: index of the right candidate, if there is one.
        pictures: addresses of the pictures, if pictures are ranked.
    """

    captions: Sequence[str]
    right: int | None = None
    pictures: Sequence[str] | None = None

    def body(self, side: Side[RankedCandidates]) -> str:
        if side.result is None:
            return said(side, "")
        row = self._caption if self.pictures is None else self._picture
        shares = side.result.shares
        rows = "".join(
            row(number, int(place), float(shares[place]), float(side.result.scores[place]))
            for number, place in enumerate(side.result.order[:SHOWN], 1)
        )
        kind = "ce-captions" if self.pictures is None else "ce-pictures"
        return f'<ol class="{kind}">{rows}</ol>'

    def chip(self, result: RankedCandidates) -> str:
        if self.right is None:
            return ""
        rank = result.rank(self.right)
        if rank == 1:
            return chip("✓ right one first", "good")
        return chip(f"✗ right one: {rank} of {result.order.size}", "warn")

    def same(self, dense: RankedCandidates, compressed: RankedCandidates) -> bool:
        return int(dense.order[0]) == int(compressed.order[0])

    def clocks(self, results: Sequence[RankedCandidates]) -> tuple[Clock, ...]:
        """The embedding of pictures first, which pruning changes most: of the gallery or of the query.

        The gallery was embedded at the start; captions may be new.
        """
        query = tuple(result.query_ms for result in results)
        ranking = Clock("ranking", tuple(result.ranking_ms for result in results))
        total = tuple(result.total_ms for result in results)
        if self.pictures is not None:
            embedded = results[0].gallery_ms if results else ()
            size = f"{len(self.pictures)} pictures, once, at the start" if self.pictures else ""
            return (
                Clock("embed pictures", embedded, size=size, main=True),
                Clock("embed caption", query),
                ranking,
                Clock("search", total, size="caption and ranking"),
            )
        new = tuple(each.candidates_ms for each in results if each.candidates_ms is not None)
        captions = [Clock("embed captions", new)] if new else []
        return (
            Clock("embed picture", query, main=True),
            *captions,
            ranking,
            Clock("total", total),
        )

    def _picture(self, number: int, place: int, share: float, score: float) -> str:
        assert self.pictures is not None
        caption = plain(self.captions[place])
        return (
            f"<li{self._mark(place)}>"
            f'<span class="ce-tip"{tip(self.captions[place])}>'
            f'<img src="{self.pictures[place]}" alt="{number}: {caption}"></span>'
            f"{_share(share, score)}</li>"
        )

    def _caption(self, number: int, place: int, share: float, score: float) -> str:
        text = plain(self.captions[place])
        return f"<li{self._mark(place)}><p>{number}. {text}</p>{_share(share, score)}</li>"

    def _mark(self, place: int) -> str:
        return ' class="ce-is-right"' if place == self.right else ""


def _share(share: float, score: float) -> str:
    return (
        f'<div class="ce-share"><div class="ce-track">'
        f'<i style="width:{max(100 * share, 1):.1f}%"></i></div><b>{percent(share)}</b>'
        f'<small class="ce-tip"{tip("score, a logit")}>{score:.1f}</small></div>'
    )
