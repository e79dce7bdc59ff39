"""The card of a caption: objects named correctly, wrongly and missed are marked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from comp.data.emoji_scenes.captions import name_pattern, names_in
from demo.cards.answer import token_clocks
from demo.cards.base import missing, said
from demo.cards.clock import Clock
from demo.cards.html import chip, plain, tip
from demo.comparison import Side
from serve.generation.results import Generation


@dataclass(frozen=True)
class CaptionFace:
    """Judges a caption by the objects that it names.

    Attributes:
        names: the objects in the picture, with repetitions; ``None`` if they are unknown.
        beginning: the given beginning of the caption; objects named in it do not count.
    """

    names: Sequence[str] | None = None
    beginning: str = ""

    def body(self, side: Side[Generation]) -> str:
        beginning_html = ""
        if self.beginning and side.state in ("working", "done"):
            beginning_html = f'<span class="ce-given">{plain(self.beginning)}</span> '
        if self.names is None or side.state != "done":
            return said(side, beginning_html + plain(side.text))
        left = sorted((self.wanted - names_in(side.text)).elements())
        missed = missing(f"missed: {', '.join(left)}") if left else ""
        return said(side, beginning_html + marked(side.text, self.wanted)) + missed

    def chip(self, result: Generation) -> str:
        if self.names is None:
            return ""
        named, present = names_in(result.text), self.wanted
        right, wrong = (named & present).total(), (named - present).total()
        words = f"{right} of {present.total()} things" + (f", {wrong} wrong" if wrong else "")
        return chip(words, "good" if right == present.total() and not wrong else "warn")

    def same(self, dense: Generation, compressed: Generation) -> bool:
        return dense.text.split() == compressed.text.split()

    def clocks(self, results: Sequence[Generation]) -> tuple[Clock, ...]:
        return token_clocks(results)

    @property
    def wanted(self) -> Counter[str]:
        """The objects that are left for the model to name."""
        return Counter(self.names or ()) - names_in(self.beginning)


def marked(caption: str, wanted: Counter[str]) -> str:
    """A caption as HTML: names of objects in the picture (``ce-right``) and of others (``ce-wrong``).

    A name counts as often as its object occurs.
    """
    text = " ".join(caption.split())
    left, parts, end = Counter(wanted), [], 0
    for match in name_pattern().finditer(text):
        name = match.group().lower()
        right = left[name] > 0
        left[name] -= right
        kind, hint = ("right", "is there") if right else ("wrong", "is not there")
        mark = f'<mark class="ce-{kind} ce-tip"{tip(hint)}>{plain(match.group())}</mark>'
        parts += [plain(text[end : match.start()]), mark]
        end = match.end()
    return "".join(parts) + plain(text[end:])
