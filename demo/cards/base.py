"""Parts that all views share: header, one card per model, bars, kept tokens. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

from demo.cards.clock import NOISY, Clock, gain
from demo.cards.html import chip, figure, milliseconds, panel, plain, quiet, tip
from demo.cards.kept_tokens import KeptView, data_uri
from demo.comparison import Comparison, Side
from demo.pair import Pair
from export.artifact.manifest import Task
from serve.artifacts import BOTH, Which

NAMES: dict[Which, str] = {"dense": "Original", "compressed": "Compressed"}
KEPT_TITLE = "What the compressed model keeps looking at"
EVERYTHING = "all read"
NOTHING = '<span class="ce-quiet">–</span>'
# The two cards, the bars, the kept tokens, and what is said of both answers.
Shown = tuple[str, str, str, str, str]
PRODUCT = "comp-export"
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True)
class Words:
    """The page's wording for a task.

    Attributes:
        title: heading of the page.
        lead: what is seen, up to the share of computation that is removed.
        working: state of a model that computes.
        invitation: what to do to see a result.
        same, differ: whether both results agree.
        examples: what the accuracy was measured on.
    """

    title: str
    lead: str
    working: str
    invitation: str
    same: str
    differ: str
    examples: str


WORDS: dict[Task, Words] = {
    "question": Words(
        "Same question, two models",
        "Your question goes to the original model, then to its twin",
        "answering",
        "Ask",
        "same answer",
        "answers differ",
        "test questions",
    ),
    "caption": Words(
        "Same picture, two captions",
        "The original model describes your picture, then its twin",
        "describing",
        "Describe a picture",
        "same caption",
        "captions differ",
        "things in test pictures",
    ),
    "statement": Words(
        "Same statement, two verdicts",
        "The original model judges your statement, then its twin",
        "judging",
        "Judge a statement",
        "same verdict",
        "verdicts differ",
        "test statements",
    ),
    "retrieval": Words(
        "Same search, two models",
        "The original model searches, then its twin",
        "searching",
        "Search",
        "same first result",
        "first results differ",
        "test searches",
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

    def same(self, dense: R_contra, compressed: R_contra) -> bool:
        """Whether both models gave the same result."""
        ...

    def clocks(self, results: Sequence[R_contra]) -> tuple[Clock, ...]:
        """The times of some runs of one request, without values if there are none yet."""
        ...


def header(pair: Pair[Any]) -> str:
    """Return the header: the model, the share removed, and whether it was verified."""
    manifest = pair.compressed.manifest
    words = WORDS[pair.task]
    model = Path(manifest.model)  # or a name
    chips = [
        chip(model.name if model.is_absolute() else manifest.model, "strong", manifest.model),
        chip(
            f"{100 * manifest.rate:.0f} % of FLOPs removed",
            title="share of the multiply-accumulates of one request that pruning removed",
        ),
        chip(manifest.method, title="pruning method") if manifest.method else "",
        _proof(pair),
        chip(
            f"{pair.compressed.provider} · {manifest.precision}",
            title="what runs both models, and how exactly it computes",
        ),
    ]
    removed = f"with {100 * manifest.rate:.0f} % of its computation pruned away"
    return f"""
<header class="ce-header">
  <div>
    <a class="ce-product" href="{plain(project_url())}">{PRODUCT}</a>
    <h1>{words.title}</h1>
    <p>{words.lead} {removed}; both run {plain(_place(pair))}, now.</p>
  </div>
  <div class="ce-chips">{"".join(chips)}</div>
</header>"""


def _place(pair: Pair[Any]) -> str:
    """Where the models run, in words."""
    return f"at {pair.server}" if pair.server else "here"


def project_url() -> str:
    """The address of the project, as in its package; this page where none is given."""
    try:
        addresses = metadata(PRODUCT).get_all("Project-URL") or []
    except PackageNotFoundError:
        addresses = []
    for line in addresses:
        address = str(line).partition(",")[2].strip()
        if address.startswith("https://"):
            return address
    return "/"


def _proof(pair: Pair[Any]) -> str:
    if pair.verified:
        return chip("verified", "good", "the exported graphs give what torch gives")
    if pair.proved:
        return chip("not verified here", "warn", "verify proved the plan's own keep ratios only")
    return chip("not verified", "warn", "run comp-export verify")


def shown(
    pair: Pair[Any], face: Face[Any], now: Comparison[Any], notice: str = "", kept: str = ""
) -> Shown:
    """The parts of the page that change.

    Args:
        pair: the models.
        face: shows their results.
        now: the state of both.
        notice: a sentence about the request.
        kept: the panel of the kept tokens, if both models are done.
    """
    first, second = (card(side, pair, face) for side in (now.dense, now.compressed))
    empty = panel(KEPT_TITLE, _empty(pair, now, "to see which image tokens stay."))
    return first, second, bars(pair, face, now), kept or empty, remarks(pair, face, now, notice)


def refusal(pair: Pair[Any], face: Face[Any], words: str) -> Shown:
    """The initial state, with the reason why nothing is shown."""
    start = shown(pair, face, Comparison())
    alert = f'<p class="ce-notice" role="alert">{plain(words)}</p>'
    return (*start[:4], f'<div class="ce-remarks">{alert}</div>')


def remarks(pair: Pair[Any], face: Face[Any], now: Comparison[Any], notice: str = "") -> str:
    """Whether both results agree, how accurate the models are, and a notice."""
    words = WORDS[pair.task]
    agreement = ""
    if now.dense.state == now.compressed.state == "done":
        same = face.same(now.dense.result, now.compressed.result)
        agreement = chip(
            f"= {words.same}" if same else f"≠ {words.differ}", "good" if same else "warn"
        )
    below = f'<p class="ce-notice" role="status">{plain(notice)}</p>' if notice else ""
    return f'<div class="ce-remarks">{agreement}{_accuracy(pair)}{below}</div>'


def _accuracy(pair: Pair[Any]) -> str:
    accuracy = pair.reports.accuracy
    if pair.server:
        return f'<span class="ce-quiet">Answered by {plain(pair.server)}.</span>'
    if accuracy is None:
        return '<span class="ce-quiet">Accuracy not measured: run comp-export eval.</span>'
    of = WORDS[pair.task].examples
    if not accuracy.data.startswith("EmojiScenes"):
        of = f"examples of {accuracy.data}"
    own = " with the plan's own keep ratios" if pair.keep_factor != 1 else ""
    metric = str(pair.reports.evaluated.get("metric", "accuracy"))
    words = f"measured by comp-export eval ({metric}){own}"
    return (
        f'<span class="ce-quiet ce-tip"{tip(words)}>Original → compressed: '
        f"<b>{accuracy}</b> of {accuracy.n} {plain(of)}{own}</span>"
    )


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
        f"<div><dt>{clock.name}</dt><dd>"
        f"{'–' if clock.median is None else milliseconds(clock.median) + '<small>ms</small>'}"
        "</dd></div>"
        for clock in face.clocks(side.measured)
    )


def _costs(pair: Pair[Any], which: Which) -> str:
    manifest = pair.manifests[which]
    values = (
        ("GMACs", _macs(pair, which), "billions of multiply-accumulates of one request"),
        ("parameters", _engineering(manifest.params), "in the exported graphs"),
        ("size", f"{manifest.size_bytes / 2**20:.1f} MiB", "files of the artifact"),
    )
    return "".join(
        f'<div><dt><span class="ce-tip"{tip(words)}>{name}</span></dt><dd>{value}</dd></div>'
        for name, value, words in values
    )


def _macs(pair: Pair[Any], which: Which) -> str:
    macs, dense = pair.macs(which), pair.macs("dense")
    if macs is None:
        return "–"
    share = f"<small>{100 * macs / dense:.0f} %</small>" if dense and which != "dense" else ""
    return gmacs(macs) + share


def gmacs(macs: int) -> str:
    """Multiply-accumulates in billions, with three digits."""
    billions = macs / 1e9
    return f"{billions:,.0f}" if billions >= 100 else f"{billions:.3g}"


def _engineering(number: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def bars(pair: Pair[Any], face: Face[Any], now: Comparison[Any]) -> str:
    """A bar chart of both models' clocks: medians, spread, gain, and the medians of the bench."""
    if now.dense.result is None or now.compressed.result is None:
        return panel("Time", _empty(pair, now, "to see the clocks."))
    if not now.measured:
        return panel("Time", quiet("Running both again, in turn, to measure them …"))
    clocks = list(zip(face.clocks(now.dense.timed), face.clocks(now.compressed.timed), strict=True))
    shown_clocks = [(a, b) for a, b in clocks if a.values and b.values]
    rows = "".join(_bar_group(pair, before, after) for before, after in shown_clocks)
    count = len(now.dense.timed)
    note = f"milliseconds, median of {count} runs in turn" if count > 1 else "milliseconds, one run"
    if pair.server:
        note += ", as the server measured"
    noise = max((clock.spread for both in shown_clocks for clock in both), default=0.0)
    below = ""
    if noise > NOISY:
        span = f"up to {100 * noise:.0f} %" if noise <= 1 else "more than 100 %"
        below = (
            f'<p class="ce-noise">This machine is busy now: the middle half of the runs spans {span} '
            "of the median (dark lines).</p>"
        )
    return panel("Time", f'<div class="ce-bars ce-measured">{rows}</div>{below}', note)


def _bar_group(pair: Pair[Any], before: Clock, after: Clock) -> str:
    longest = max(before.quartiles[1], after.quartiles[1], 1e-9)

    def bar(kind: Which, clock: Clock) -> str:
        assert clock.median is not None
        low, high = clock.quartiles
        style = f"width:{max(100 * clock.median / longest, 1):.1f}%"
        span = f"left:{100 * low / longest:.1f}%;width:{100 * (high - low) / longest:.1f}%"
        line = f'<u class="ce-spread" style="{span}"></u>' if len(clock.values) > 1 else ""
        words = (
            f"{NAMES[kind]}: median {milliseconds(clock.median)} ms; half of the runs took "
            f"{milliseconds(low)} to {milliseconds(high)} ms"
        )
        return (
            f'<div class="ce-bar ce-tip"{tip(words)}><div class="ce-track">'
            f'<i class="ce-fill-{kind}" style="{style}"></i>{line}</div>'
            f"<b>{milliseconds(clock.median)}</b></div>"
        )

    main = " ce-main" if before.main else ""
    alike = before.size == after.size
    words = before.size if alike else f"{before.size or EVERYTHING} → {after.size or EVERYTHING}"
    size = f" <small>{plain(words)}</small>" if words else ""
    faster = gain(before, after) if alike else "not the same work"
    return (
        f'<div class="ce-bar-group{main}"><div class="ce-bar-name">'
        f"<span>{before.name.capitalize()}{size}</span><em>{faster}</em></div>"
        f"{bar('dense', before)}{bar('compressed', after)}{_bench(pair, before.bench)}</div>"
    )


def _bench(pair: Pair[Any], measure: str) -> str:
    """The medians of the bench, which are of its own request."""
    if not measure:
        return ""
    dense, compressed = (pair.reports.median_ms(which, measure) for which in BOTH)
    if dense is None or compressed is None:
        return ""
    times = f"{milliseconds(dense)} → {milliseconds(compressed)}"
    return f'<p class="ce-bench">bench: {times}, {dense / compressed:.2f}×</p>'


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
