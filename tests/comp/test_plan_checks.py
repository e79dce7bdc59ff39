"""Rules that a plan checks for every family: `cut` must not write a wrong model from it."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from comp.cli import cli
from comp.errors import CompExportError
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload, keep_count
from tests.comp.small import small_adapter
from tests.comp.small_blip import random_blip
from tests.comp.small_clip import random_clip
from tests.export.weights.test_cut import contents

HEADS, CHANNELS = 8, 24


def block(heads=(0,), channels=(0,), **changes):
    sizes = {
        "part": "vision",
        "index": 0,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": CHANNELS,
        "kept_key_value_heads": heads,
        "kept_channels": channels,
    }
    return BlockPlan.model_validate(sizes | changes)


def drop(**changes):
    sizes = {"after_layer": 1, "vision_keep_ratio": 0.5, "text_keep_ratio": 1.0}
    return DropPlan.model_validate(sizes | changes)


def plan(**changes):
    fields = {
        "family": "clip",
        "model": "tiny",
        "method": "test",
        "rate": 0.25,
        "workload": Workload(image_tokens=10, text_tokens=5),
        "macs_dense": 400,
        "macs": 300,
        "blocks": (),
    }
    return PruningPlan.model_validate(fields | changes)


@given(st.lists(st.integers(-3, CHANNELS + 2), max_size=6))
def test_kept_indices_must_ascend_within_the_block(kept):
    right = bool(kept) and kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < CHANNELS
    if right:
        assert block(channels=kept).kept_channels == tuple(kept)
    else:
        with pytest.raises(ValidationError, match=r"kept_channels|keeps no channel"):
            block(channels=kept)


@given(st.lists(st.integers(-2, HEADS + 1), max_size=5))
def test_kept_heads_must_ascend_within_the_block(kept):
    right = bool(kept) and kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < HEADS
    if right:
        assert block(heads=kept).kept_heads == tuple(kept)
    else:
        with pytest.raises(ValidationError, match="kept_key_value_heads"):
            block(heads=kept)


@given(st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_keep_ratios_are_above_zero_and_at_most_one(ratio):
    if 0 < ratio <= 1 and round(ratio * 1000) >= 1:
        assert keep_count(1000, drop(text_keep_ratio=ratio).text_keep_ratio) >= 1
    else:
        with pytest.raises(ValidationError):
            drop(text_keep_ratio=ratio)


@given(st.lists(st.integers(1, 5), max_size=4), st.sampled_from(["vision", "language"]))
def test_places_and_blocks_are_unique_and_ordered(numbers, part):
    drops = [drop(part=part, after_layer=number) for number in numbers]
    blocks = [block(part=part, index=number) for number in numbers]
    if numbers == sorted(set(numbers)):
        assert len(plan(drops=drops, blocks=blocks).blocks) == len(numbers)
        return
    with pytest.raises(ValidationError, match=f"drops after blocks .* of the {part} part"):
        plan(drops=drops)
    with pytest.raises(ValidationError, match=f"blocks .* of the {part} part must ascend"):
        plan(blocks=blocks)


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.floats(-2, 2))
def test_the_rate_must_follow_from_the_costs(before, after, off):
    result = 1 - after / before
    plan(macs_dense=before, macs=after, rate=result).check_rate()
    if abs(off) > 0.011:
        with pytest.raises(ValueError, match=f"macs {after} of {before}"):
            plan(macs_dense=before, macs=after, rate=result + off).check_rate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs_dense": 0}, "macs_dense"),
        ({"macs": 10**400}, "macs"),
        ({"rate": float("nan")}, "rate"),
        (
            {"rate_of": "latency", "milliseconds_dense": 8.0, "milliseconds": 4.0},
            "milliseconds 4.0 of 8.0",
        ),
        ({"workload": {"image_tokens": 10**30, "text_tokens": 1}}, "workload.image_tokens"),
    ],
)
def test_impossible_numbers_are_named(tmp_path, changes, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(plan().model_dump_json()) | changes))
    with pytest.raises(CompExportError) as refused:
        PruningPlan.load(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 12},  # of 8 KV heads
        {"num_attention_heads": True, "num_key_value_heads": 1},
        {"intermediate_size": "24"},
        {"index": 2**31},
    ],
)
def test_impossible_counts_are_refused(changes):
    with pytest.raises(ValidationError):
        block(**changes)


MODELS = {
    "clip": lambda: random_clip(2, width=64),
    "question": lambda: random_blip("question", seed=2, width=64),
    "statement": lambda: random_blip("statement", seed=2, width=64),
    "llava": small_adapter,
}


def of_one_block(adapter, directory, **changes):
    """A plan that halves the last block of the vision part alone."""
    last = max((b for b in adapter.blocks if b.part == "vision"), key=lambda each: each.index)
    halved = {
        "part": "vision",
        "index": last.index,
        "num_attention_heads": last.num_attention_heads,
        "num_key_value_heads": last.num_key_value_heads,
        "intermediate_size": last.intermediate_size,
        "kept_key_value_heads": list(range(1, last.num_key_value_heads)),
        "kept_channels": list(range(last.intermediate_size // 2)),
    }
    fields = json.loads(plan(family=adapter.name).model_dump_json())
    path = directory / "plan.json"
    path.write_text(json.dumps(fields | {"blocks": [halved | changes]}))
    return path


def run_cut(model, path, out):
    words = ["cut", "--model", str(model), "--plan", str(path), "--out", str(out)]
    return CliRunner().invoke(cli, words)


@pytest.mark.parametrize("kind", MODELS)
def test_cut_refuses_wrong_indices_and_leaves_unnamed_blocks_whole(tmp_path, kind):
    adapter = MODELS[kind]()
    adapter.save(tmp_path / "dense")
    wrong = (
        {"kept_channels": [1, 1]},
        {"kept_channels": [3, 2]},
        {"kept_channels": [-1]},
        {"kept_key_value_heads": [0, 0]},
        {"kept_key_value_heads": [99]},
    )
    for changes in wrong:
        path = of_one_block(adapter, tmp_path, **changes)
        done = run_cut(tmp_path / "dense", path, tmp_path / "out")
        assert isinstance(done.exception, CompExportError)
        assert next(iter(changes)) in str(done.exception)
        assert not (tmp_path / "out").exists()
    done = run_cut(tmp_path / "dense", of_one_block(adapter, tmp_path), tmp_path / "out")
    assert done.exit_code == 0, done.output
    made = PruningPlan.load(tmp_path / "out" / "plan.json")
    expected = adapter.cut(made).model.state_dict()
    from comp.families.loading import load_adapter

    result = load_adapter(tmp_path / "out" / "checkpoint").model.state_dict()
    assert contents({name: t.numpy() for name, t in result.items()}) == contents(
        {name: t.numpy() for name, t in expected.items()}
    )


@pytest.mark.parametrize("kind", ["clip", "question"])
def test_cut_refuses_a_drop_after_more_blocks_than_there_are(tmp_path, kind):
    adapter = MODELS[kind]()
    adapter.save(tmp_path / "dense")
    fields = json.loads(plan(family=adapter.name).model_dump_json())
    far = drop(part="vision", after_layer=99).model_dump()
    (tmp_path / "plan.json").write_text(json.dumps(fields | {"drops": [far]}))
    done = run_cut(tmp_path / "dense", tmp_path / "plan.json", tmp_path / "out")
    assert isinstance(done.exception, CompExportError)
    assert "tokens dropped after block 99 of vision" in str(done.exception)
