"""`comp-export prune --cost latency`: the rate is of predicted time, not of FLOPs."""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from comp.importance.parameters import Scores, cheapest_units
from comp.masks import Masks, StructureCounts
from comp.plan import Workload
from comp.runs import open_run
from comp.search.costs import Costs
from comp.search.final_plan import SearchResult, drops_of, final_plan
from comp.search.stage import ImportanceOptions, Search, SearchState, mask_of
from comp.utils.compute import Compute
from tests.comp.small import questions, small_adapter
from tests.comp.small_tables import table_for

QUICK = ("--stages", "3", "--steps-per-stage", "1", "--recover-steps", "1", "--batch-size", "4")
QUICK += ("--calibration", "8", "--validation", "8", "--dtype", "float32", "--device", "cpu")
SLOW_FFN = {"attention": 0.0001, "ffn": 0.01}
SLOW_ATTENTION = {"attention": 0.2, "ffn": 0.00001}


def predicted(table, plan):
    """Milliseconds of a plan, from the plan alone."""
    counts = StructureCounts(
        {(b.part, b.index): len(b.kept_key_value_heads) for b in plan.blocks},
        {(b.part, b.index): len(b.kept_channels) for b in plan.blocks},
    )
    shares = {d.place: (d.vision_keep_ratio, d.text_keep_ratio) for d in plan.drops}
    return table.milliseconds(counts, shares, plan.workload)


def test_costs_need_a_table_to_count_time():
    with pytest.raises(ValueError, match="without a latency table"):
        Costs(small_adapter(), rate_of="latency")


@pytest.mark.parametrize("rate_of", ["flops", "latency"])
def test_a_plan_meets_the_rate_of_its_costs(rate_of):
    adapter = small_adapter()
    table = table_for(adapter, **SLOW_FFN)
    masks = Masks.ones(adapter.blocks)
    for key, mask in masks.channels.items():
        if key[0] == "language":
            mask[: len(mask) // 2] = 0
    scores = Scores(
        {key: mask.clone() for key, mask in masks.heads.items()},
        {key: mask.clone() for key, mask in masks.channels.items()},
    )
    shares = {("language", 1): (0.6, 0.9)}
    workload = Workload(image_tokens=16, text_tokens=12)
    costs = Costs(adapter, table, rate_of)
    plan = final_plan(
        adapter,
        SearchResult(masks, scores, 16, drops_of(shares)),
        workload,
        0.5,
        "m",
        "comp",
        costs,
    )
    assert plan.rate == pytest.approx(0.5, abs=0.02)
    assert plan.rate_of == rate_of
    assert plan.milliseconds == pytest.approx(predicted(table, plan))
    time_rate = 1 - plan.milliseconds / plan.milliseconds_dense
    assert plan.rate == pytest.approx(time_rate if rate_of == "latency" else plan.flops_rate)
    assert abs(time_rate - plan.flops_rate) > 0.02  # the two contradict each other


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder, adapter = tmp_path_factory.mktemp("tables"), small_adapter()
    for name, times in (("ffn", SLOW_FFN), ("attention", SLOW_ATTENTION)):
        table_for(adapter, **times).save(folder / f"{name}.json")
    return folder


def prune(checkpoint, out, *more):
    words = ["prune", "--model", str(checkpoint), "--rate", "0.4", "--out", str(out), *QUICK]
    result = CliRunner().invoke(cli, [*words, "--json", *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_run_saves_the_requested_time(checkpoint, tables, tmp_path):
    table_file = tables / "ffn.json"
    words = ("--cost", "latency", "--latency-table", str(table_file))
    printed = prune(checkpoint, tmp_path / "run", *words)
    run = open_run(tmp_path / "run")
    plan, record = run.load_plan(), run.read_record()
    assert plan.rate_of == record["rate_of"] == printed["rate_of"] == "latency"
    assert plan.rate == printed["rate"] == pytest.approx(0.4, abs=0.02)
    times = {"dense": plan.milliseconds_dense, "compressed": plan.milliseconds}
    assert record["milliseconds"] == printed["milliseconds"] == times
    assert record["macs"] == {"dense": plan.macs_dense, "compressed": plan.macs}
    assert record["latency_target"]["provider"] == "made up"
    assert record["request"]["table"]["path"] == str(table_file)
    lines = [json.loads(line) for line in run.stages.read_text().splitlines()]
    assert all(0 < line["milliseconds"] < plan.milliseconds_dense for line in lines)
    for line in lines:
        saved = 1 - line["milliseconds"] / plan.milliseconds_dense
        assert line["rate"] == pytest.approx(saved, abs=1e-5)


@pytest.mark.parametrize("times", [SLOW_FFN, SLOW_ATTENTION])
def test_a_stage_cuts_the_least_important_until_the_time_is_saved(times):
    """The order is that of Eq. 3 for every table; the table decides where it ends."""
    adapter = small_adapter()
    calibration = [adapter.collate(questions(4))]
    workload = adapter.workload(calibration)
    costs = Costs(adapter, table_for(adapter, **times), "latency")
    options = ImportanceOptions(min_channels=4)
    compute = Compute("cpu", "float32")
    search = Search(adapter, compute, calibration, options, workload, costs=costs)
    whole = SearchState(Masks.ones(adapter.blocks))
    mode = next(mode for mode in adapter.modes if mode.part == "language")
    target = round(0.8 * search.cost(whole))
    moved = search.advance(whole, mode, target)
    scores = search.importance(whole, {"language"}).scores(adapter)
    units = cheapest_units(scores, moved.scales, whole.masks, adapter.blocks, 4)
    gone = sum(int((mask == 0).sum()) for mask in moved.masks.heads.values())
    gone += sum(int((mask == 0).sum()) for mask in moved.masks.channels.values())
    assert all(mask_of(moved.masks, kind, key)[i] == 0 for _, kind, key, i in units[:gone])
    assert search.cost(moved) <= target
    _, kind, key, index = units[gone - 1]
    mask_of(moved.masks, kind, key)[index] = 1
    assert search.cost(moved) > target


def test_a_table_with_cost_flops_only_records_the_time(checkpoint, tables, tmp_path):
    prune(checkpoint, tmp_path / "plain")
    words = ("--latency-table", str(tables / "ffn.json"))
    prune(checkpoint, tmp_path / "timed", *words)
    plain, timed = (open_run(tmp_path / name).load_plan() for name in ("plain", "timed"))
    assert plain.milliseconds is None
    assert timed.milliseconds is not None
    times = {"milliseconds": None, "milliseconds_dense": None}
    assert timed.model_copy(update=times) == plain


def test_without_a_table_the_command_that_makes_one_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompExportError, match=r"runs/latency/checkpoint\.json.*profile --model"):
        prune(checkpoint, tmp_path / "run", "--cost", "latency")
    assert not (tmp_path / "run").exists()


def test_the_default_table_of_the_model_is_used(checkpoint, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table_for(small_adapter(), **SLOW_FFN).save(tmp_path / "runs/latency/checkpoint.json")
    prune(checkpoint, tmp_path / "run", "--cost", "latency", "--recover", "none")
    record = open_run(tmp_path / "run").read_record()
    assert record["request"]["table"]["path"] == "runs/latency/checkpoint.json"


def test_bad_requests_are_refused(checkpoint, tables, tmp_path):
    table = ("--latency-table", str(tables / "ffn.json"))
    out = tmp_path / "run"
    with pytest.raises(CompExportError, match="--method wanda: only comp"):
        prune(checkpoint, out, "--cost", "latency", "--method", "wanda", *table)
    with pytest.raises(CompExportError, match="is a blip: there are latency tables of llava, clip"):
        prune("tiny-blip-vqa", out, "--cost", "latency", *table)
    with pytest.raises(CompExportError, match="is of a llava, the model is a clip"):
        prune("tiny-clip", out, "--cost", "latency", *table)
    with pytest.raises(CompExportError, match="of another model"):
        prune("tiny-llava", out, "--cost", "latency", *table)
    with pytest.raises(CompExportError, match="--cost latency is not of the paper's recipe"):
        prune(checkpoint, out, "--faithful", "--cost", "latency", *table)
    with pytest.raises(CompExportError, match=r"at most 0\.\d\d"):
        prune(checkpoint, out, "--cost", "latency", "--modes", "lt", "--rate", "0.95", *table)
    assert not (out / "plan.json").exists()
