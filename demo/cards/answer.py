"""The card of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from comp.metrics.exact_match import exact_match
from demo.cards.base import said
from demo.cards.clock import Clock
from demo.cards.html import chip, plain
from demo.comparison import Side
from serve.generation.results import Generation


@dataclass(frozen=True)
class AnswerFace:
    """``expected`` is the right answer, if it is known."""

    expected: str | None = None

    def body(self, side: Side[Generation]) -> str:
        return said(side, plain(side.text))

    def chip(self, result: Generation) -> str:
        if self.expected is None:
            return ""
        right = exact_match(self.expected, result.text)
        return chip("✓ right", "good") if right else chip(wrong(self.expected), "warn")

    def same(self, dense: Generation, compressed: Generation) -> bool:
        return exact_match(dense.text, compressed.text)

    def clocks(self, results: Sequence[Generation]) -> tuple[Clock, ...]:
        return token_clocks(results)


def wrong(expected: str) -> str:
    """The right answer, beside a wrong one."""
    return f"✗ wrong: expected {expected}"


def token_clocks(results: Sequence[Generation]) -> tuple[Clock, ...]:
    """Clocks for results that come token by token."""
    longer = [done for done in results if done.timings.decode_steps > 0]
    known = results[0].cached_tokens if results else 0
    steps = results[0].timings.decode_steps if results else 0
    return (
        Clock(
            "first token",
            tuple(done.ttft_ms for done in results),
            "ttft_ms",
            f"{known} prompt tokens known" if known else "",
        ),
        Clock("per token", tuple(done.tpot_ms for done in longer), "tpot_ms"),
        Clock("total", tuple(done.total_ms for done in results), size=f"{steps + 1} tokens"),
    )
