"""Parts that all views share: header, one card per model, bars, kept tokens. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from demo.cards.html import chip, figure, milliseconds, panel, plain, quiet
from demo.cards.kept_tokens import KeptView, data_uri
from demo.comparison import Comparison, Side
from demo.pair import Pair
from export.artifact.manifest import Manifest, Task
from serve.artifacts import Which

NAMES: dict[Which, str] = {"dense": "Original", "compressed": "Compressed"}
ALIKE = 0.02  # a smaller difference counts as none
KEPT_TITLE = "What the compressed model keeps looking at"
NOTHING = '<span class="ce-quiet">–</span>'
Shown = tuple[str, str, str, str]  # the two cards, the bars, the kept tokens
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True)
class Words:
    """The page's wording for a task.

    Attributes:
        title, lead: heading and first sentence of the page.
        working: state of a model that computes.
        invitation: what to do to see a result.
        result: name of a model's result.
    """

    title: str
    lead: str
    working: str
    invitation: str
    result: str


WORDS: dict[Task, Words] = {
    "question": Words(
        "Same question, two models", "The original answers first", "answering", "Ask", "this answer"
    ),
    "caption": Words(
        "Same picture, two captions",
        "The original describes it first",
        "describing",
        "Describe a picture",
        "this caption",
    ),
    "statement": Words(
        "Same statement, two verdicts",
        "The original judges first",
        "judging",
        "Judge a statement",
        "this verdict",
    ),
    "retrieval": Words(
        "Same search, two models",
        "The original searches first",
        "searching",
        "Search",
        "this search",
    ),
}


class Face(Protocol[R_contra]):
    """Shows the results of a task on a card."""

    def body(self, side: Side[Any]) -> str:
        """The result as HTML."""
        ...

    def chip(self, result: R_contra) -> str:
        """Whether the result is right, as HTML; empty if that is unknown."""
        ...

    def clocks(self, result: R_contra | None) -> tuple[tuple[str, float | None], ...]:
        """Names and milliseconds; ``None`` if there is nothing to measure."""
        ...


def header(pair: Pair[Any]) -> str:
    """Return the header: the model, the share removed, and whether it was verified."""
    manifest = pair.compressed.manifest
    words = WORDS[pair.task]
    model = Path(manifest.model)  # or a name
    chips = [
        chip(model.name if model.is_absolute() else manifest.model, "strong", manifest.model),
        chip(f"{100 * manifest.rate:.0f} % of FLOPs removed"),
        chip(manifest.method) if manifest.method else "",
        chip("verified", "good", "torch and ONNX agree")
        if pair.verified
        else chip("not verified", "warn", "Run comp-export verify"),
        chip(f"{pair.compressed.provider} · {manifest.precision}"),
    ]
    return f"""
<header class="ce-header">
  <div>
    <h1>{words.title}</h1>
    <p>{words.lead}, then its compressed twin: on this machine, now.</p>
  </div>
  <div class="ce-chips">{"".join(chips)}</div>
</header>"""


def shown(pair: Pair[Any], face: Face[Any], now: Comparison[Any]) -> Shown:
    """The parts of the page that change; kept tokens are shown when both models are done."""
    first, second = (card(side, pair, face) for side in (now.dense, now.compressed))
    kept = panel(KEPT_TITLE, _empty(pair, now, "to see which image tokens stay."))
    return first, second, bars(pair, face, now), kept


def card(side: Side[Any], pair: Pair[Any], face: Face[Any]) -> str:
    """One model's result, its times and its costs."""
    states = {
        "ready": "ready",
        "waiting": "waits for the original",
        "working": WORDS[pair.task].working,
        "done": "done",
    }
    verdict = face.chip(side.result) if side.result is not None else ""
    return f"""
<article class="ce-card ce-{side.which}" data-state="{side.state}">
  <div class="ce-card-head">
    <h2>{NAMES[side.which]}</h2><span class="ce-state">{states[side.state]}</span>{verdict}
  </div>
  <div class="ce-body" aria-live="polite">{face.body(side)}</div>
  <dl class="ce-times">{_times(face, side)}</dl>
  <dl class="ce-costs">{_costs(pair, side.which)}</dl>
</article>"""


def said(side: Side[Any], text: str) -> str:
    """A sentence of the model as HTML, with a caret while it continues; ``text`` is HTML."""
    caret = '<span class="ce-caret"></span>' if side.state == "working" else ""
    return f'<p class="ce-answer">{text + caret or NOTHING}</p>'


def _times(face: Face[Any], side: Side[Any]) -> str:
    return "".join(
        f"<div><dt>{name}</dt><dd>"
        f"{'–' if value is None else milliseconds(value) + '<small>ms</small>'}</dd></div>"
        for name, value in face.clocks(side.result)
    )


def _costs(pair: Pair[Any], which: Which) -> str:
    manifest, dense = pair.manifests[which], pair.manifests["dense"]
    values = (
        ("FLOPs", _macs(manifest, dense), "multiply-accumulates of one request"),
        ("parameters", _engineering(manifest.params), "in the exported graphs"),
        ("size", f"{manifest.size_bytes / 2**20:.1f} MiB", "files of the artifact"),
    )
    return "".join(
        f'<div title="{title}"><dt>{name}</dt><dd>{value}</dd></div>'
        for name, value, title in values
    )


def _macs(manifest: Manifest, dense: Manifest) -> str:
    if manifest.macs is None:
        return "–"
    share = ""
    if dense.macs is not None and manifest is not dense:
        share = f"<small>{100 * manifest.macs.artifact / dense.macs.artifact:.0f} %</small>"
    return _engineering(manifest.macs.artifact) + share


def _engineering(number: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def bars(pair: Pair[Any], face: Face[Any], now: Comparison[Any]) -> str:
    """A bar chart of both models' clocks, with the gain."""
    if now.dense.result is None or now.compressed.result is None:
        return panel("Time", _empty(pair, now, "to see the clocks."))
    both = zip(face.clocks(now.dense.result), face.clocks(now.compressed.result), strict=True)
    rows = "".join(
        _bar_group(name, before, after)
        for (name, before), (_, after) in both
        if before is not None and after is not None
    )
    note = f"milliseconds, {WORDS[pair.task].result}"
    return panel("Time", f'<div class="ce-bars">{rows}</div>', note)


def _bar_group(name: str, before: float, after: float) -> str:
    longest = max(before, after, 1e-9)
    gain = before / after if after else 1.0
    label = f"{gain:.2f}× faster" if gain >= 1 else f"{1 / gain:.2f}× slower"
    label = "alike" if abs(gain - 1) < ALIKE else label

    def bar(kind: Which, value: float) -> str:
        style = f"width:{max(100 * value / longest, 1):.1f}%"
        return (
            f'<div class="ce-bar" title="{NAMES[kind]}"><div class="ce-track">'
            f'<i class="ce-fill-{kind}" style="{style}"></i></div><b>{milliseconds(value)}</b></div>'
        )

    return (
        f'<div class="ce-bar-group"><div class="ce-bar-name"><span>{name.capitalize()}</span>'
        f"<em>{label}</em></div>{bar('dense', before)}{bar('compressed', after)}</div>"
    )


def kept_panel(views: Sequence[KeptView]) -> str:
    """Each picture as the model sees it, and after drops."""
    if not any(view.places for view in views):
        body = '<p class="ce-quiet ce-final">This plan drops no image tokens.</p>'
        return panel(KEPT_TITLE, body)
    rows = "".join(f'<div class="ce-figures ce-final">{_figures(view)}</div>' for view in views)
    note = "dropped patches fade"
    if len(views[0].pictures) < views[0].places:
        note = f"{len(views[0].pictures)} of {views[0].places} drop places · {note}"
    return panel(KEPT_TITLE, rows, note)


def _figures(view: KeptView) -> str:
    figures = [figure(data_uri(view.seen), view.name, f"{view.pictures[0].of} image tokens")]
    for kept in view.pictures:
        numbers = f"{kept.kept} of {kept.of} stay"
        figures.append(figure(data_uri(kept.picture), f"after {kept.place}", numbers))
    return "".join(figures)


def _empty(pair: Pair[Any], now: Comparison[Any], purpose: str) -> str:
    words = WORDS[pair.task]
    if now.dense.state == "ready":
        return quiet(f"{words.invitation} {purpose}")
    return quiet(f"{words.working.capitalize()} …")


def missing(text: str) -> str:
    """A note below a result about what it lacks."""
    return f'<p class="ce-missed">{plain(text)}</p>'
