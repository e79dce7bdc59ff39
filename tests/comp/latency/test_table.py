"""Tables of milliseconds: interpolation between points, and the sum over the blocks of a prompt."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.errors import CompExportError
from comp.latency.files import TableFile, default_table
from comp.latency.table import DenseBlock, LatencyTable, Surface, dense_block
from comp.masks import StructureCounts
from comp.plan import Workload
from tests.comp.small import small_adapter
from tests.comp.small_tables import surface, table_for, table_of

GRID = Surface(
    part="language",
    kind="attention",
    tokens=(10, 20),
    heads=(1, 3),
    ms=(((1.0,), (2.0,)), ((3.0,), (8.0,))),
)


@pytest.mark.parametrize(
    ("tokens", "heads", "ms"),
    [
        (10, 1, 1.0),
        (20, 3, 8.0),
        (10, 2, 1.5),  # half way between 1 and 2
        (15, 1, 2.0),  # half way between 1 and 3
        (15, 2, 3.5),  # the mean of 1, 2, 3 and 8
        (12, 3, 3.2),  # a fifth of the way from 2 to 8
        (4, 1, 1.0),  # below the first point: as there
        (40, 3, 16.0),  # twice the last point: twice the time
        (40, 2, 11.0),  # twice the mean of 3 and 8
    ],
)
def test_between_points_times_are_linear(tokens, heads, ms):
    assert GRID.at(tokens, heads) == pytest.approx(ms)


@st.composite
def surfaces(draw):
    """Draw a monotonic grid of times, as sums of increments."""
    axes = [
        sorted(draw(st.sets(st.integers(low, 60), min_size=1, max_size=4))) for low in (1, 1, 0)
    ]
    sizes = [len(axis) for axis in axes]
    added = st.floats(0, 10, allow_nan=False)
    steps = {
        (i, j, k): draw(added)
        for i in range(sizes[0])
        for j in range(sizes[1])
        for k in range(sizes[2])
    }

    def total(i, j, k):
        inside = [(a, b, c) for a, b, c in steps if a <= i and b <= j and c <= k]
        return round(sum(steps[each] for each in sorted(inside)), 3)

    ms = tuple(
        tuple(tuple(total(i, j, k) for k in range(sizes[2])) for j in range(sizes[1]))
        for i in range(sizes[0])
    )
    tokens, heads, channels = map(tuple, axes)
    return Surface(
        part="language", kind="ffn", tokens=tokens, heads=heads, channels=channels, ms=ms
    )


@given(surfaces(), st.data())
def test_predicted_time_is_monotonic(result, data):
    """Inside the grid, below it and beyond it."""
    more = [data.draw(st.integers(0, 130)) for _ in range(3)]
    less = [data.draw(st.integers(0, most)) for most in more]
    assert result.at(*less) <= result.at(*more) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": (20, 10)}, "do not ascend"),
        ({"ms": (((1.0,), (2.0,)),)}, "not a time for each point"),
        ({"ms": (((1.0,), (2.0,)), ((3.0,), (2.5,)))}, "fall along an axis"),
        ({"ms": (((-1.0,), (2.0,)), ((3.0,), (8.0,)))}, "negative"),
        ({"ms": (((float("nan"),), (2.0,)), ((3.0,), (8.0,)))}, "no number"),
    ],
)
def test_inconsistent_grids_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Surface.model_validate(GRID.model_dump() | changes)


def block(part, index, heads, channels):
    return DenseBlock(
        part=part,
        index=index,
        hidden_size=32,
        heads=heads,
        group_size=1,
        head_dim=8,
        channels=channels,
    )


BLOCKS = (
    block("language", 0, 4, 48),
    block("language", 1, 4, 48),
    block("language", 2, 4, 48),
    block("vision", 0, 3, 20),
)
VISION = 0.5 + 0.1 * 3 + 0.01 * 20  # the fixed part, three heads, twenty channels


def test_a_dense_prompt_by_hand():
    table = table_of(BLOCKS)
    on = Workload(image_tokens=16, text_tokens=8)
    parts = table.by_part(StructureCounts({}, {}), {}, on)
    attention, ffn = 0.01 * 24 * 4, 0.001 * 24 * 48
    last = 0.25 + attention + 0.001 * 1 * 48  # its FFN sees one token
    assert parts["vision"] == pytest.approx(VISION)
    assert parts["embedding"] == pytest.approx(0.024)
    assert parts["language"] == pytest.approx(2 * (attention + ffn) + last)
    assert table.milliseconds(StructureCounts({}, {}), {}, on) == pytest.approx(sum(parts.values()))


def test_a_pruned_prompt_by_hand():
    """After block 1 half of 16 image and a quarter of 8 text tokens stay: 24 become 10."""
    table = table_of(BLOCKS, drop=0.002)
    counts = StructureCounts(
        {("language", 0): 3, ("language", 2): 1, ("vision", 0): 1},
        {("language", 0): 24, ("language", 1): 12},
    )
    on = Workload(image_tokens=16, text_tokens=8)
    parts = table.by_part(counts, {("language", 1): (0.5, 0.25)}, on)
    first = 0.01 * 24 * 3 + 0.001 * 10 * 24 + 0.002 * 24  # attention on all, FFN on the kept tokens
    second = 0.01 * 10 * 4 + 0.001 * 10 * 12
    last = 0.25 + 0.01 * 10 * 1 + 0.001 * 48
    assert parts["language"] == pytest.approx(first + second + last)
    assert parts["vision"] == pytest.approx(VISION - 0.2)


def test_a_pair_of_a_clip_by_hand():
    """Half of 16 image tokens leave the first block of two, a quarter of 8 texts' the second of three."""
    blocks = (
        *(block("vision", index, 2, 10) for index in range(2)),
        *(block("language", index, 4, 20) for index in range(3)),
    )
    surfaces = [
        made
        for part in ("vision", "language")
        for made in (
            surface(part, "fixed", lambda t, h, c: 0.5 + 0.01 * t),
            surface(part, "attention", lambda t, h, c: 0.1 * t * h, heads=(1, 4)),
            surface(part, "ffn", lambda t, h, c: 0.001 * t * c, channels=(0, 20)),
            surface(part, "last", lambda t, h, c: 0.3 + 0.05 * t * h, heads=(1, 4)),
            surface(part, "drop", lambda t, h, c: 0.02 * t, heads=(1, 4)),
        )
    ]
    table = table_of(BLOCKS).model_copy(
        update={"family": "clip", "blocks": blocks, "surfaces": tuple(surfaces)}
    )
    table = LatencyTable.model_validate(table.model_dump())
    counts = StructureCounts({("vision", 0): 1, ("language", 2): 3}, {("vision", 1): 5})
    shares = {("vision", 1): (0.5, 1.0), ("language", 2): (1.0, 0.25)}
    on = Workload(image_tokens=16, text_tokens=8)
    parts = table.by_part(counts, shares, on)
    first = 0.1 * 16 * 1 + 0.001 * 8 * 10 + 0.02 * 16
    assert parts["vision"] == pytest.approx(0.66 + first + 0.3 + 0.05 * 8 * 2 + 0.001 * 1 * 5)
    whole = 0.1 * 8 * 4 + 0.001 * 8 * 20
    second = 0.1 * 8 * 4 + 0.001 * 2 * 20 + 0.02 * 8
    assert parts["language"] == pytest.approx(
        0.58 + whole + second + 0.3 + 0.05 * 2 * 3 + 0.001 * 1 * 20
    )
    texts = table.by_part(counts, shares, Workload(image_tokens=0, text_tokens=8))
    assert texts == {"vision": 0.0, "language": parts["language"]}


def test_partial_images_count_whole_and_no_image_counts_nothing():
    table, nothing = table_of(BLOCKS), StructureCounts({}, {})
    for tokens, images in ((0, 0), (1, 1), (16, 1), (17, 2)):
        parts = table.by_part(nothing, {}, Workload(image_tokens=tokens, text_tokens=4))
        assert parts["vision"] == pytest.approx(images * VISION)


def test_a_table_survives_save_and_load(tmp_path):
    table = table_of(BLOCKS)
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    first = TableFile.at(tmp_path / "table.json")
    table_of(BLOCKS, drop=1.0).save(tmp_path / "table.json")
    assert TableFile.at(tmp_path / "table.json").sha256 != first.sha256


def test_damaged_tables_are_refused_with_the_remedy(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(CompExportError, match="comp-export profile"):
        LatencyTable.load(path)
    good = json.loads(table_of(BLOCKS, model="mine").model_dump_json())
    falling = json.loads(json.dumps(good))
    falling["surfaces"][4]["ms"][1][0][0] = 1e6
    for broken, reason in (
        ("{", "not JSON"),
        (json.dumps(good | {"version": 9}), "version 9"),
        (json.dumps(falling), "fall along an axis"),
        (json.dumps(good | {"surfaces": good["surfaces"][:-1]}), "no surface language drop"),
        (json.dumps(good | {"family": "blip"}), "family 'blip'"),
        (
            json.dumps(good | {"family": "clip"}),
            "no surface vision last, vision drop, language fixed",
        ),
    ):
        path.write_text(broken)
        with pytest.raises(CompExportError, match=reason) as caught:
            LatencyTable.load(path)
        assert "profile --model" in str(caught.value)


def test_a_table_of_another_model_is_refused():
    adapter = small_adapter()
    blocks = [dense_block(each) for each in adapter.blocks]
    table_for(adapter).check_fits("llava", blocks, "it")
    with pytest.raises(CompExportError, match="language block 0"):
        table_of(BLOCKS).check_fits("llava", blocks, "it")
    more = table_for(adapter)
    more = more.model_copy(update={"blocks": (*more.blocks, block("language", 9, 1, 1))})
    with pytest.raises(CompExportError, match="no language block 9"):
        more.check_fits("llava", blocks, "it")
    with pytest.raises(CompExportError, match="is of a llava"):
        table_for(adapter).check_fits("clip", blocks, "it")


def test_default_tables_have_the_path_that_prune_reads():
    assert str(default_table("some/where/tiny-llava")) == "runs/latency/tiny-llava.json"


def test_surfaces_reproduce_linear_functions():
    made = surface("language", "ffn", lambda t, h, c: t * c, channels=(0, 10))
    assert made.at(12, channels=5) == pytest.approx(60)
