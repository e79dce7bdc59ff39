"""The page's pieces as HTML: header, answer cards, bars, kept tokens. Pure functions."""

from html import escape

from PIL import Image

from comp.data.scoring import exact_match
from demo.comparison import Comparison, Pair, Side
from demo.kept_tokens import KeptPicture, data_uri
from export.manifest import Manifest

NAMES = {"dense": "Original", "compressed": "Compressed"}
ALIKE = 0.02  # a smaller difference is not worth a word
KEPT_TITLE = "What the compressed model keeps looking at"
_STATES = {
    "ready": "ready",
    "waiting": "waits for the original",
    "answering": "answering",
    "done": "done",
}


def plain(text: str) -> str:
    """Text as HTML; braces and dollars too, which the page's templates would read as their own."""
    escaped = escape(text)
    return escaped.replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def header(pair: Pair) -> str:
    """What is compared: the model, how much was removed, whether that is proved."""
    manifest = pair.compressed.manifest
    proof = (
        '<span class="ce-chip ce-good" title="torch and ONNX give equal answers">verified</span>'
        if pair.verified
        else '<span class="ce-chip ce-warn" title="Run comp-export verify">not verified</span>'
    )
    method = f'<span class="ce-chip">{plain(manifest.method)}</span>' if manifest.method else ""
    return f"""
<header class="ce-header">
  <div>
    <h1>Same question, two models</h1>
    <p>The original answers first, then its compressed twin: on this machine, now.</p>
  </div>
  <div class="ce-chips">
    <span class="ce-chip ce-strong">{plain(manifest.model)}</span>
    <span class="ce-chip">{100 * manifest.rate:.0f} % of FLOPs removed</span>
    {method}{proof}
    <span class="ce-chip">{plain(pair.compressed.provider)} · {plain(manifest.precision)}</span>
  </div>
</header>"""


def answer_card(side: Side, manifest: Manifest, dense: Manifest, expected: str | None) -> str:
    """One model's answer, its times, and what it costs."""
    text = plain(side.text)
    if side.state == "answering":
        text += '<span class="ce-caret"></span>'
    elif not text:
        text = '<span class="ce-quiet">–</span>'
    verdict = ""
    if side.state == "done" and expected is not None:
        right = exact_match(expected, side.text)
        mark, kind = ("✓ right", "ce-good") if right else (f"✗ {plain(expected)}", "ce-warn")
        verdict = f'<span class="ce-chip {kind}">{mark}</span>'
    return f"""
<article class="ce-card ce-{side.which}" data-state="{side.state}">
  <div class="ce-card-head">
    <h2>{NAMES[side.which]}</h2><span class="ce-state">{_STATES[side.state]}</span>{verdict}
  </div>
  <p class="ce-answer" aria-live="polite">{text}</p>
  <dl class="ce-times">{_times(side)}</dl>
  <dl class="ce-costs">{_costs(manifest, dense)}</dl>
</article>"""


def _times(side: Side) -> str:
    done = side.generation
    values = (
        ("first token", f"{done.ttft_ms:.1f}" if done else None),
        ("per token", f"{done.tpot_ms:.2f}" if done and done.timings.decode_steps else None),
        ("total", f"{done.total_ms:.1f}" if done else None),
    )
    return "".join(
        f"<div><dt>{name}</dt><dd>{value + '<small>ms</small>' if value else '–'}</dd></div>"
        for name, value in values
    )


def _costs(manifest: Manifest, dense: Manifest) -> str:
    macs = "–"
    share = ""
    if manifest.macs is not None:
        macs = _engineering(manifest.macs.artifact)
        if dense.macs is not None and manifest is not dense:
            share = f"<small>{100 * manifest.macs.artifact / dense.macs.artifact:.0f} %</small>"
    values = (
        ("FLOPs", macs + share, "multiply-accumulates of reading one prompt"),
        ("parameters", _engineering(manifest.params), "in the exported graphs"),
        ("size", f"{manifest.size_bytes / 2**20:.1f} MiB", "files of the artifact"),
    )
    return "".join(
        f'<div title="{title}"><dt>{name}</dt><dd>{value}</dd></div>'
        for name, value, title in values
    )


def _engineering(number: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def bars(now: Comparison) -> str:
    """A bar chart of the times of both answers, with what was gained."""
    first, second = now.dense.generation, now.compressed.generation
    if first is None or second is None:
        return _panel("Time", _empty(now, "Ask to see the clocks."))
    groups = [("First token", first.ttft_ms, second.ttft_ms)]
    if first.timings.decode_steps and second.timings.decode_steps:
        groups.append(("Per token", first.tpot_ms, second.tpot_ms))
    groups.append(("Whole answer", first.total_ms, second.total_ms))
    rows = "".join(_bar_group(name, before, after) for name, before, after in groups)
    return _panel("Time", f'<div class="ce-bars">{rows}</div>', "milliseconds, this answer")


def _bar_group(name: str, before: float, after: float) -> str:
    longest = max(before, after, 1e-9)
    gain = before / after if after else 1.0
    label = f"{gain:.2f}× faster" if gain >= 1 else f"{1 / gain:.2f}× slower"
    label = "alike" if abs(gain - 1) < ALIKE else label

    def bar(kind: str, value: float) -> str:
        style = f"width:{max(100 * value / longest, 1):.1f}%"
        number = f"{value:.1f}" if value >= 10 else f"{value:.2f}"
        return (
            f'<div class="ce-bar" title="{NAMES[kind]}"><div class="ce-track">'
            f'<i class="ce-fill-{kind}" style="{style}"></i></div><b>{number}</b></div>'
        )

    return (
        f'<div class="ce-bar-group"><div class="ce-bar-name"><span>{name}</span>'
        f"<em>{label}</em></div>{bar('dense', before)}{bar('compressed', after)}</div>"
    )


def kept_nothing_yet(now: Comparison) -> str:
    """The panel of kept tokens before there is an answer."""
    return _panel(KEPT_TITLE, _empty(now, "Ask to see which image tokens stay."))


def kept_row(view: Image.Image, pictures: list[KeptPicture]) -> str:
    """The picture as the model sees it, and what stays of it after each drop."""
    title = KEPT_TITLE
    if not pictures:
        return _panel(title, '<p class="ce-quiet">This plan drops no tokens.</p>')
    total = pictures[0].of
    figures = [_figure(data_uri(view), "the model's view", f"{total} image tokens")]
    for kept in pictures:
        numbers = f"{kept.kept} of {kept.of} stay"
        figures.append(_figure(data_uri(kept.picture), f"after {kept.place}", numbers))
    return _panel(
        title, f'<div class="ce-figures">{"".join(figures)}</div>', "dropped patches fade"
    )


def _empty(now: Comparison, invitation: str) -> str:
    words = invitation if now.dense.state == "ready" else "Answering …"
    return f'<p class="ce-quiet">{words}</p>'


def _figure(address: str, name: str, numbers: str) -> str:
    return (
        f'<figure><img src="{address}" alt="{plain(name)}: {plain(numbers)}">'
        f"<figcaption><b>{plain(name)}</b><span>{plain(numbers)}</span></figcaption></figure>"
    )


def _panel(title: str, body: str, note: str = "") -> str:
    return (
        f'<section class="ce-panel"><div class="ce-panel-head"><h3>{title}</h3>'
        f"<span>{note}</span></div>{body}</section>"
    )
