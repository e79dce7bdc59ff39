"""The card of a verdict on a statement."""

from collections.abc import Sequence
from dataclasses import dataclass

from demo.cards.base import NOTHING, said
from demo.cards.clock import Clock
from demo.cards.html import chip, percent
from demo.comparison import Side
from serve.engines.blip_judge import Judgement


@dataclass(frozen=True)
class VerdictFace:
    """``truth`` is whether the statement is true, if that is known."""

    truth: bool | None = None

    def body(self, side: Side[Judgement]) -> str:
        done = side.result
        if done is None:
            return said(side, "") + _probability(None)
        return said(side, "True" if done.verdict else "False") + _probability(done.probability)

    def chip(self, result: Judgement) -> str:
        if self.truth is None:
            return ""
        right = result.verdict == self.truth
        return (
            chip("✓ right", "good")
            if right
            else chip(f"✗ wrong: it is {str(self.truth).lower()}", "warn")
        )

    def same(self, dense: Judgement, compressed: Judgement) -> bool:
        return dense.verdict == compressed.verdict

    def clocks(self, results: Sequence[Judgement]) -> tuple[Clock, ...]:
        """Time of the pictures (preparation and vision tower), and of the statement."""
        times = [result.timings for result in results]
        return (
            Clock("pictures", tuple(each.prepare_ms + each.vision_ms for each in times)),
            Clock("statement", tuple(each.prefill_ms for each in times), "prefill_ms"),
            Clock("total", tuple(each.total_ms for each in times), "ttft_ms"),
        )


def _probability(share: float | None) -> str:
    """A bar from false to true, with a mark at the decision threshold."""
    number = NOTHING if share is None else percent(share)
    return (
        '<div class="ce-probability"><div class="ce-probability-head">'
        f"<span>probability of true</span><b>{number}</b></div>"
        f'<div class="ce-scale"><i style="width:{100 * (share or 0):.1f}%"></i></div></div>'
    )
