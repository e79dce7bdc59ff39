"""The card of an answer."""

from dataclasses import dataclass

from comp.metrics.exact_match import exact_match
from demo.cards.base import said
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
        return chip("✓ right", "good") if right else chip(f"✗ {self.expected}", "warn")

    def clocks(self, result: Generation | None) -> tuple[tuple[str, float | None], ...]:
        return token_clocks(result)


def token_clocks(done: Generation | None) -> tuple[tuple[str, float | None], ...]:
    """Clocks for results that come token by token."""
    steps = done is not None and done.timings.decode_steps > 0
    return (
        ("first token", done.ttft_ms if done else None),
        ("per token", done.tpot_ms if done and steps else None),
        ("total", done.total_ms if done else None),
    )
