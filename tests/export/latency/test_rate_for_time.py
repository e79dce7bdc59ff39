"""`comp-export plan`: the weakest plan that meets a time, by a table, and its refusals."""

import json

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.cli import cli
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.latency.table import HeldOut
from comp.plan import PruningPlan, Workload
from comp.registry.families import FAMILIES
from export.graph.builder import Target
from export.latency.clip_blocks import ClipBlocks
from export.latency.held_out import Model, predicted
from export.latency.llava_blocks import LlavaBlocks
from export.latency.rate_for_time import STEPS, plan_for, sketched
from tests.comp.small import small_adapter
from tests.comp.small_clip import random_clip
from tests.comp.small_tables import table_for

MODES = FAMILIES[0].modes
TEXT = 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("planned") / "model"
    adapter = small_adapter(
        hidden_size=64,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=8,
    )
    adapter.save(directory)
    return directory


@pytest.fixture(scope="module")
def blocks(checkpoint):
    return LlavaBlocks.of(checkpoint, Target(), TEXT, 0)


@pytest.fixture(scope="module")
def table(checkpoint):
    return table_for(load_adapter(checkpoint, "cpu", None))


def checked(table, *errors):
    """The table with these errors, as shares of the measured time."""
    held_out = (
        HeldOut(name="dense", image_tokens=16, text_tokens=8, predicted_ms=9, measured_ms=1),
        *(
            HeldOut(
                name=f"plan {number}",
                image_tokens=16,
                text_tokens=8,
                predicted_ms=1 + error,
                measured_ms=1,
            )
            for number, error in enumerate(errors)
        ),
    )
    return table.model_copy(update={"held_out": held_out})


def request_of(blocks):
    return Workload(image_tokens=blocks.image_tokens, text_tokens=blocks.text_tokens)


def test_strength_0_leaves_all_and_1_the_least(blocks):
    whole = sketched(blocks, MODES, 0, 16)
    assert (whole.macs, whole.rate, whole.drops) == (whole.macs_dense, 0, ())
    least = sketched(blocks, MODES, 1, 16)
    assert {len(block.kept_key_value_heads) for block in least.part("language")} == {1}  # of 8
    assert {len(block.kept_channels) for block in least.part("language")} == {32}  # of 320
    assert [drop.place for drop in least.drops] == [("language", n) for n in (1, 2, 3)]
    assert {drop.shares for drop in least.drops} == {(0.311, 0.669)}  # cubes: 0.03 and 0.3


@pytest.mark.parametrize(
    ("modes", "cut"),
    [
        (("vision_tokens",), (False, False, {(0.31, 1.0)})),
        (("language_tokens",), (False, False, {(1.0, 0.67)})),
        (("language_parameters",), (False, True, set())),
        (("vision_parameters",), (True, False, set())),
    ],
)
def test_only_the_given_modes_are_cut(blocks, modes, cut):
    plan = sketched(blocks, modes, 1, 16)
    tower, language, shares = cut

    def narrower(part):
        return any(len(b.kept_channels) < b.intermediate_size for b in plan.part(part))

    assert (narrower("vision"), narrower("language")) == (tower, language)
    actual = {tuple(round(share, 2) for share in drop.shares) for drop in plan.drops}
    assert actual == shares


def test_each_part_of_a_clip_drops_its_own_tokens(tmp_path):
    random_clip(1, width=32).save(tmp_path / "clip")
    blocks = ClipBlocks.of(tmp_path / "clip", Target(), None, 0)
    plan = sketched(blocks, FAMILIES[0].modes, 1, 16)
    kept = {"vision": 1.0, "language": 1.0}
    for drop in plan.drops:
        assert drop.shares == (
            (drop.keep_ratio, 1.0) if drop.part == "vision" else (1.0, drop.keep_ratio)
        )
        kept[drop.part] *= drop.keep_ratio
    assert kept["vision"] == pytest.approx(0.03, rel=0.02)
    assert kept["language"] == pytest.approx(0.3, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.3, 0.95))
def test_the_plan_meets_the_time_and_the_next_weaker_does_not(blocks, table, share):
    on = request_of(blocks)
    dense = predicted(table, Model("", None, on))
    actual = plan_for(blocks, table, MODES, on, 16, share * dense)
    assert actual.plan_ms <= share * dense
    assert actual.plan_ms == pytest.approx(predicted(table, Model("", actual.plan, on)))
    assert actual.rate == pytest.approx(1 - actual.plan_ms / dense)
    weaker = (
        sketched(blocks, MODES, step / STEPS, 16)
        for step in range(1, STEPS)
        if sketched(blocks, MODES, step / STEPS, 16).macs > actual.plan.macs
    )
    nearest = min(weaker, key=lambda plan: plan.macs, default=None)
    if nearest is not None:
        assert predicted(table, Model("", nearest, on)) > share * dense


def test_the_error_of_the_table_is_taken_into_account(blocks, table):
    """A table that is 10 % too short on average: its prediction must be lower by that."""
    on = request_of(blocks)
    target = 0.6 * predicted(table, Model("", None, on))
    plain = plan_for(blocks, table, MODES, on, 16, target)
    actual = plan_for(blocks, checked(table, -0.15, -0.05), MODES, on, 16, target)
    assert actual.mean_error == pytest.approx(-0.1)
    assert actual.plan_ms <= 0.9 * target
    assert actual.plan_ms < plain.plan_ms
    assert actual.expected_ms == pytest.approx(actual.plan_ms / 0.9)
    assert actual.range_ms == pytest.approx((actual.plan_ms / 0.95, actual.plan_ms / 0.85))


def test_an_unreachable_or_already_met_time_is_refused(blocks, table):
    on = request_of(blocks)
    dense = predicted(table, Model("", None, on))
    with pytest.raises(CompExportError, match=r"least is .* ms.*allow more --modes"):
        plan_for(blocks, table, ("language_tokens",), on, 16, dense / 3)
    with pytest.raises(CompExportError, match="nothing has to go"):
        plan_for(blocks, table, MODES, on, 16, dense * 1.01)


def invoke(*arguments):
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)])


def output_of(result):
    """Return output and message on one line."""
    return " ".join(f"{result.output} {result.exception}".split())


def test_the_command_writes_the_plan(checkpoint, table, tmp_path):
    file, out = tmp_path / "table.json", tmp_path / "plan.json"
    table.save(file)
    common = ("--model", checkpoint, "--latency-table", file, "--text-tokens", TEXT)
    result = invoke(*common, "--target-ms", 12, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["predicted_ms"] <= 12 < record["dense_predicted_ms"]
    rate = float(record["command"].split("--rate ")[1].split()[0])
    assert record["rate"] <= rate < record["rate"] + 1e-4
    assert "--cost latency" in record["command"]
    assert "--modes" not in record["command"]  # if named, they would prevent a CLIP's race
    named = json.loads(invoke(*common, "--target-ms", 12, "--modes", "lp,vt", "--json").stdout)
    assert "--modes lp,vt " in named["command"]
    plan = PruningPlan.load(out)
    assert plan.rate == record["flops_rate"]
    assert plan.model == str(checkpoint)
    assert not any(
        b.part == "vision" and len(b.kept_heads) < b.num_attention_heads for b in plan.blocks
    )
    cut = CliRunner().invoke(cli, ["cut", "--plan", str(out), "--out", str(tmp_path / "run")])
    assert cut.exit_code == 0, cut.output

    shown = invoke(*common, "--target-ms", 12)
    assert "share of time to remove" in shown.output
    assert "was not checked" in shown.output
    assert "exists already" in output_of(invoke(*common, "--target-ms", 12, "--out", out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--modes", "cp"), "a llava has"),
        (("--latency-table", "nowhere.json"), "no latency table at nowhere.json"),
        (("--model", "tiny-blip-vqa"), "profiling supports llava, clip"),
        (("--target-ms", "0"), "not in the range"),
        (("--text-tokens", "100000"), "the model has positions for"),
    ],
)
def test_bad_input_is_refused(checkpoint, table, tmp_path, options, message):
    file = tmp_path / "table.json"
    table.save(file)
    base = ("--model", checkpoint, "--latency-table", file, "--target-ms", 12)
    result = invoke(*base, *options)
    assert result.exit_code != 0
    assert message in output_of(result)


def test_a_table_of_another_model_is_refused(checkpoint, tmp_path):
    file = tmp_path / "table.json"
    table_for(small_adapter()).save(file)
    result = invoke("--model", checkpoint, "--latency-table", file, "--target-ms", 12)
    assert result.exit_code == 1
    assert "is of another model" in output_of(result)
