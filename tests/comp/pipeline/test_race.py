"""Racing searches: their lanes, their steps, and that the best one continues."""

import json

import pytest
from click.testing import CliRunner

from comp.adapter import Mode
from comp.cli import cli
from comp.errors import CompExportError
from comp.pipeline import prune as pipeline
from comp.pipeline import steps as run_steps
from comp.pipeline.race import Lane, Verdict, check_steps, has_room, lanes_of, winner
from comp.runs import open_run
from tests.comp.small_clip import random_clip

TOKENS = [Mode("vision_tokens", tokens="vision"), Mode("language_tokens", tokens="text")]
PARAMETERS = [
    Mode("vision_parameters", part="vision"),
    Mode("language_parameters", part="language"),
]
SMALL = ("--stages", "2", "--steps-per-stage", "3", "--recover-steps", "8", "--batch-size", "4")
SMALL += ("--calibration", "4", "--validation", "8", "--dtype", "float32", "--device", "cpu")


def test_each_kind_races_alone_where_it_reaches_the_rate():
    modes = [*TOKENS, *PARAMETERS]
    assert [lane.name for lane in lanes_of(modes, lambda _: True)] == [
        "all",
        "parameters",
        "tokens",
    ]
    (_, alone) = lanes_of(modes, lambda some: some == PARAMETERS)
    assert alone == Lane("parameters", ("vision_parameters", "language_parameters"))


@pytest.mark.parametrize("modes", [TOKENS, PARAMETERS])
def test_one_kind_does_not_race(modes):
    (lane,) = lanes_of(modes, lambda _: True)
    assert lane.modes == tuple(mode.name for mode in modes)


def test_a_race_needs_its_steps():
    two = [Lane("all", ("a", "b")), Lane("parameters", ("b",))]
    check_steps(two, search=12, race=16, steps=56)
    with pytest.raises(CompExportError, match=r"all, parameters takes 56 training steps.* are 55"):
        check_steps(two, search=12, race=16, steps=55)
    # three searches of 12, two losers' 16, and three times 16 for the winner
    assert has_room(12, 16, 116)
    assert not has_room(12, 16, 115)
    assert has_room(0, 16, 80)


def test_the_lane_with_the_least_loss_wins():
    first, second = Lane("all", ("a", "b")), Lane("parameters", ("b",))
    assert winner([Verdict(first, 0.4, 0.9), Verdict(second, 0.3, 0.8)]) == second


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "dense"
    random_clip().save(path)
    return path


def pruned(dense, out, *more):
    words = ["prune", "--model", str(dense), "--rate", "0.3", "--out", str(out), *SMALL, *more]
    return CliRunner().invoke(cli, words, catch_exceptions=False)


@pytest.fixture(scope="module")
def raced(dense, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "raced"
    result = pruned(dense, out, "--race", "1")
    assert result.exit_code == 0, result.output
    return open_run(out)


def test_the_best_lane_continues(raced):
    record = raced.read_record()
    race = record["race"]
    assert [entry["name"] for entry in race][:2] == ["all", "parameters"]
    (chosen,) = [entry for entry in race if entry["chosen"]]
    assert chosen["validation_loss"] == min(entry["validation_loss"] for entry in race)
    assert record["modes"] == chosen["modes"]
    lines = [json.loads(line) for line in raced.stages.read_text().splitlines()]
    assert {line["mode"] for line in lines} <= set(chosen["modes"])
    # A loser's recovery steps count among the requested 6 + 8; searches that refit take none.
    losers = len(race) - 1
    assert record["steps"] == {"search": losers, "recovery": 14 - losers}


def test_racing_searches_take_their_training_steps(dense, tmp_path):
    more = ("--race", "1", "--train-stages", "--modes", "vt,vp", "--recover-steps", "20")
    result = pruned(dense, tmp_path / "run", *more)
    assert result.exit_code == 0, result.output
    record = open_run(tmp_path / "run").read_record()
    losers = len(record["race"]) - 1
    assert losers >= 1
    assert record["steps"] == {"search": 6 + 7 * losers, "recovery": 20 - 7 * losers}


def test_an_interrupted_race_continues(dense, raced, tmp_path, monkeypatch):
    out, recover, begun = tmp_path / "cut", run_steps.recover, []

    def until_the_second(slim, plan, compute, data, options, folder, *more):
        begun.append(folder.name)
        if begun == ["all", "parameters"]:
            raise KeyboardInterrupt
        recover(slim, plan, compute, data, options, folder, *more)

    monkeypatch.setattr(run_steps, "recover", until_the_second)
    assert pruned(dense, out, "--race", "1").exit_code != 0
    assert pruned(dense, out, "--race", "1", "--resume").exit_code == 0
    assert begun[2] == "parameters"  # "all" has its verdict
    again = open_run(out)
    assert again.load_plan() == raced.load_plan()
    ours, whole = again.read_record()["race"], raced.read_record()["race"]
    assert [entry["chosen"] for entry in ours] == [entry["chosen"] for entry in whole]
    for entry, other in zip(ours, whole, strict=True):
        assert entry["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)


def test_too_few_steps_are_refused(dense, tmp_path):
    with pytest.raises(CompExportError, match=r"--race 9 .*training steps, and there are 14"):
        pruned(dense, tmp_path / "run", "--race", "9")


def test_other_methods_do_not_race(dense, tmp_path):
    for more in (("--method", "upop"), ("--recover", "none")):
        with pytest.raises(CompExportError, match=r"--race 2 with " + " ".join(more)):
            pruned(dense, tmp_path / "run", "--race", "2", *more)
    with pytest.raises(CompExportError, match="--race 2 is not of the paper's recipe"):
        pruned(dense, tmp_path / "run", "--race", "2", "--faithful")


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        (("--recover-steps", "80"), 4),
        (("--recover-steps", "80", "--modes", "vp,lp"), 0),
        (("--recover-steps", "80", "--method", "sjp"), 0),
        (("--recover-steps", "80", "--recover", "none"), 0),
    ],
)
def test_a_clip_races_by_default_where_steps_suffice(dense, tmp_path, monkeypatch, more, steps):
    requests = []

    def stop(request, *_, **__):
        requests.append(request)
        raise CompExportError("seen")

    monkeypatch.setattr(pipeline, "run_pruning", stop)
    with pytest.raises(CompExportError, match="seen"):
        pruned(dense, tmp_path / "run", *more)
    assert (requests[0].race, requests[0].race_if_room) == (steps, True)


@pytest.mark.parametrize("more", [(), ("--recover", "lora")])
def test_a_race_by_default_needs_enough_steps(dense, tmp_path, more):
    # Under LoRA nothing is refitted, so that searches train: known when the model is loaded.
    result = pruned(dense, tmp_path / "run", *more)
    assert result.exit_code == 0, result.output
    record = open_run(tmp_path / "run").read_record()
    assert "race" not in record
    assert sum(record["steps"].values()) == 14
