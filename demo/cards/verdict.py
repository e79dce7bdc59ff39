"""The card of a verdict on a statement."""

from dataclasses import dataclass

from demo.cards.base import NOTHING, said
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
        return chip("✓ right", "good") if right else chip(f"✗ {str(self.truth).lower()}", "warn")

    def clocks(self, result: Judgement | None) -> tuple[tuple[str, float | None], ...]:
        """Time of the pictures (preparation and vision tower), and of the statement."""
        if result is None:
            return (("pictures", None), ("statement", None), ("total", None))
        times = result.timings
        pictures = times.prepare_ms + times.vision_ms
        return (("pictures", pictures), ("statement", times.prefill_ms), ("total", times.total_ms))


def _probability(share: float | None) -> str:
    """A bar from false to true, with a mark at the decision threshold."""
    number = NOTHING if share is None else percent(share)
    return (
        '<div class="ce-probability"><div class="ce-probability-head">'
        f"<span>probability of true</span><b>{number}</b></div>"
        f'<div class="ce-scale"><i style="width:{100 * (share or 0):.1f}%"></i></div></div>'
    )
