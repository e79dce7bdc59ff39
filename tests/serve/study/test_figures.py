"""The figures of a study: lines over several rates, and rows one below the other at a single one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from serve.study.figures import accuracy_figure, rows_figure, save_figures
from serve.study.summary import RowSummary

ROW = RowSummary(
    row="comp",
    method="comp",
    removes="both",
    rate=0.8,
    seeds=(0, 1),
    accuracy=0.9,
    interval=(0.6, 1.2),
    spread="seeds",
    macs=2e8,
    params=1e6,
    steps=(10, 10),
    ttft_share=0.4,
    tpot_share=None,
    seconds=1.0,
    times_fine_tuning=None,
    by_seed=(0.8, 1.0),
)
OTHER = replace(
    ROW, row="upop", removes="parameters", seeds=(0,), accuracy=0.5, interval=(0.4, 0.6)
)


def summary(*rows, share=True):
    dense = SimpleNamespace(accuracy=SimpleNamespace(value=0.96), macs=1e9)
    return SimpleNamespace(
        rows=rows, share=share, dense=dense, reference="comp", name="s", test="1", metric="CIDEr"
    )


def reach(figure, number=0):
    """Return the ends of a row's interval along the axis of accuracy."""
    (lines,) = figure.axes[0].containers[number].lines[2]
    (segment,) = lines.get_segments()
    return sorted(segment[:, 0].tolist())


def test_rows_of_one_rate_are_named_and_their_intervals_stay_between_0_and_100():
    figure = rows_figure(summary(ROW, OTHER))
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["comp (both; 2 seeds)", "upop (parameters; 1 seed)"]
    assert reach(figure) == pytest.approx([60, 100])
    assert reach(figure, 1) == pytest.approx([40, 60])
    assert axes.get_xlabel() == "accuracy, %, at 0.200 GMACs (dashed: dense, at 1.000)"


def test_metrics_other_than_shares_are_not_clipped():
    assert reach(rows_figure(summary(ROW, share=False))) == pytest.approx([0.6, 1.2])


@pytest.mark.parametrize(("rates", "by_rows"), [((0.8,), True), ((0.7, 0.8), False)])
def test_flops_are_an_axis_where_there_are_several_rates(tmp_path, monkeypatch, rates, by_rows):
    drawn = []
    monkeypatch.setattr(
        "serve.study.figures.rows_figure",
        lambda result: drawn.append("rows") or rows_figure(result),
    )
    result = summary(*(replace(ROW, rate=rate, macs=1e9 * (1 - rate)) for rate in rates))
    paths = save_figures(result, tmp_path)
    assert drawn == ["rows"] * by_rows
    assert [path.name for path in paths] == ["accuracy-flops.png", "accuracy-ttft.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    axes = accuracy_figure(result, "x", lambda row: row.macs, 1.0).axes[0]
    assert len(axes.containers) == 1  # a line a row


def test_rows_of_one_rate_do_not_overlap():
    result = summary(*(replace(ROW, row=name, rate=0.8) for name in ("comp", "upop", "sjp")))
    figure = accuracy_figure(result, "x", lambda row: row.macs, 1.0, side_by_side=True)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    drawn = [container.lines[0] for container in axes.containers]
    places = [line.get_transform().transform(line.get_xydata())[0] for line in drawn]
    apart = 4 / 72 * figure.dpi
    assert [place[0] - places[1][0] for place in places] == pytest.approx([-apart, 0, apart])
    assert all(axes.bbox.contains(*place) for place in places)
    low, high = axes.get_ylim()
    assert low < 60  # whole intervals, which a shift hides from the limits
    assert high > 100
