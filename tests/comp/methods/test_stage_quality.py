"""The cost of a stage by the loss of a few examples, and the recorded seconds of a run."""

import json
import time
from dataclasses import replace

import pytest
import torch

from comp.adapter import DistillationTargets, Forwarding, Scored
from comp.errors import CompExportError
from comp.methods.comp import evaluate_stage, prune
from comp.pipeline.record import times_fine_tuning
from comp.runs import open_run
from comp.search.job import PruningJob
from comp.search.saved_state import STAGES
from comp.search.strategy import StrategyOptions
from comp.training.data import DataSizes
from comp.training.trainer import accuracy, mean_loss
from comp.utils.compute import Compute
from tests.comp.commands import test_prune_command as command
from tests.comp.jobs import small_job
from tests.drawing import drawn

MODES = ("vision_tokens", "language_parameters")


def job_by(metric, folder, whole=False):
    """A search on half of the validation examples, or the ``whole``."""
    job = small_job("clip", folder, 0.3, stages=3, steps_per_stage=1, modes=MODES)
    options = replace(job.options, strategy=StrategyOptions(cost_metric=metric))
    cost = None if whole else job.data.validation[1:]
    return replace(job, options=options, data=replace(job.data, cost=cost))


def lines_of(folder):
    return [json.loads(line) for line in (folder / STAGES).read_text().splitlines()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "state"
    return prune(job_by("loss", folder)), folder


def test_cost_is_loss_increase_per_share_of_flops(searched, tmp_path):
    outcome, folder = searched
    lines = lines_of(folder)
    dense = job_by("loss", tmp_path / "dense")
    before = mean_loss(dense.adapter, dense.data.cost, Forwarding(), dense.compute)
    removed = 0.0
    for line in lines:
        rose = max(0.0, line["validation_loss"] - before)
        assert line["cost"] == pytest.approx(rose / (line["rate"] - removed), rel=1e-4, abs=1e-6)
        before, removed = line["validation_loss"], line["rate"]
    assert {line["mode"] for line in lines} == set(MODES)
    assert [line["metric"] for line in lines[:-1]] == [None] * (len(lines) - 1)
    assert lines[-1]["metric"] == outcome.pruned_metric
    whole, _ = accuracy(dense.adapter, dense.data.validation, Forwarding(), dense.compute)
    assert outcome.dense_metric == whole


def test_a_search_by_loss_is_reproducible_when_interrupted(searched, tmp_path, monkeypatch):
    outcome, folder = searched
    trained = PruningJob.train

    def cut(job, first, *rest):
        if first > 0:
            raise KeyboardInterrupt
        trained(job, first, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(PruningJob, "train", cut)
        with pytest.raises(KeyboardInterrupt):
            prune(job_by("loss", tmp_path / "state"))
    assert len(lines_of(tmp_path / "state")) == 1
    again = prune(job_by("loss", tmp_path / "state"))
    assert again == outcome
    assert lines_of(tmp_path / "state") == lines_of(folder)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("whole", [False, True])
def test_stage_quality_uses_the_cost_examples(tmp_path, metric, whole):
    job = job_by(metric, tmp_path / "state", whole)
    parts = [accuracy(job.adapter, [b], Forwarding(), job.compute) for b in job.data.validation]
    used = parts if whole else parts[1:]
    right, loss = (sum(part[i] for part in used) / len(used) for i in (0, 1))
    both = sum(part[0] for part in parts) / 2
    for at_an_end in (False, True):
        read = evaluate_stage(job, Forwarding(), at_an_end)
        assert read.loss == pytest.approx(loss)
        assert read.quality == pytest.approx(right if metric == "accuracy" else -loss)
        known = at_an_end or (whole and metric == "accuracy")
        assert read.metric == (pytest.approx(both) if known else None)
    assert set(job.compute.seconds) == {"cost", "evaluation"}


def test_the_loss_is_measured_without_the_metric():
    class Adapter:
        def rows(self, batch):
            return 1

        def score(self, batch, forwarding):
            def judge():
                raise AssertionError("ranking costs more than the loss")

            return Scored(torch.tensor(batch), judge, {}, lambda: DistillationTargets((), ()), 1)

    compute = Compute("cpu", "float32")
    assert mean_loss(Adapter(), [1.0, 4.0], Forwarding(), compute) == 2.5


def test_seconds_are_counted_by_the_outermost_block():
    compute = Compute("cpu", "float32")
    with compute.timed("cost"):
        time.sleep(0.02)
        with compute.timed("evaluation"):
            time.sleep(0.02)
    with pytest.raises(KeyError), compute.timed("training"):
        raise KeyError
    with compute.timed("cost"):
        time.sleep(0.01)
    assert set(compute.seconds) == {"cost", "training"}
    assert compute.seconds["cost"] >= 0.05


def test_time_relative_to_fine_tuning_by_hand():
    seconds = {"training": 4.0, "data": 1.0, "importance": 1.0, "cost": 0.5}
    assert times_fine_tuning(6.5, seconds) == pytest.approx(1.3)
    assert times_fine_tuning(6.5, {"importance": 1.0}) is None


def test_a_run_by_loss_records_its_seconds(checkpoint, tmp_path):
    more = ("--cost-metric", "loss", "--cost-examples", "4", "--recover-steps", "2")
    more += ("--distill", "logits", "--validation", "8", "--calibration", "4", "--batch-size", "2")
    with drawn():
        command.prune(checkpoint, tmp_path / "run", *more, "--steps-per-stage", "1", rate="0.3")
    record = open_run(tmp_path / "run").read_record()
    assert record["request"]["sizes"]["cost"] == 4
    assert record["request"]["search"]["strategy"]["cost_metric"] == "loss"
    seconds = record["seconds"]
    kinds = {
        "training",
        "data",
        "distillation",
        "importance",
        "reconstruction",
        "cost",
        "evaluation",
    }
    assert set(seconds) == kinds | {"search", "recovery"}
    wall = seconds["search"] + seconds["recovery"]
    assert 0 < sum(seconds[kind] for kind in kinds) < wall
    plain = seconds["training"] + seconds["data"]
    assert 1 < record["times_fine_tuning"]["whole"] < wall / plain
    assert record["resumed"] is False
    assert (open_run(tmp_path / "run").reports / "trajectory.png").is_file()


def test_more_examples_than_validate_are_refused(checkpoint, tmp_path):
    with pytest.raises(CompExportError, match="300 examples for the cost are more than the 8"):
        command.prune(checkpoint, tmp_path / "run", "--cost-examples", "300")
    with pytest.raises(CompExportError, match="'speed': choose from accuracy, loss"):
        StrategyOptions(cost_metric="speed")
    assert DataSizes(cost=256).cost == 256
