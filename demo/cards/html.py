"""Small HTML pieces of cards and panels. Pure functions."""

from html import escape
from typing import Literal


def plain(text: str) -> str:
    """Escape text for HTML, also braces and dollars, which the page's templates would interpret."""
    escaped = escape(text)
    return escaped.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def chip(text: str, kind: Literal["", "strong", "good", "warn"] = "", title: str = "") -> str:
    """A word or two in a rounded frame."""
    classes = f"ce-chip ce-{kind}" if kind else "ce-chip"
    return f'<span class="{classes}{tip_class(title)}"{tip(title)}>{plain(text)}</span>'


def tip(text: str) -> str:
    """Attributes of an element with an explanation, shown by a mouse, a finger or the keyboard.

    The element needs ``tip_class`` too.
    """
    words = plain(text)
    return f' tabindex="0" data-tip="{words}" aria-description="{words}"' if text else ""


def tip_class(text: str) -> str:
    """The class that goes with ``tip``."""
    return " ce-tip" if text else ""


def figure(address: str, name: str, numbers: str) -> str:
    """A picture with its name and numbers."""
    return (
        f'<figure><img src="{address}" alt="{plain(name)}: {plain(numbers)}">'
        f"<figcaption><b>{plain(name)}</b><span>{plain(numbers)}</span></figcaption></figure>"
    )


def panel(title: str, body: str, note: str = "") -> str:
    """A framed part of the page; ``body`` is HTML."""
    return (
        f'<section class="ce-panel"><div class="ce-panel-head"><h3>{plain(title)}</h3>'
        f"<span>{plain(note)}</span></div>{body}</section>"
    )


def quiet(text: str) -> str:
    """A line that says that there is nothing to show."""
    return f'<p class="ce-quiet">{plain(text)}</p>'


def milliseconds(value: float) -> str:
    """Format with at least three digits."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """Format with one decimal, and as 100 % only if it is exactly that."""
    return f"{100 * min(share, 0.999):.1f} %" if share < 1 else "100 %"
