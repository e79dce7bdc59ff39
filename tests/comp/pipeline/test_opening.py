"""What a run says at its start: its steps, and how long its training takes. Plain arithmetic, no training."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from comp.pipeline import opening
from comp.pipeline.defaults import facts_of, request_of
from comp.pipeline.opening import opening_of, training_passes, training_seconds
from comp.pipeline.options import PruneOptions
from comp.pipeline.resolve import resolve_request

EXAMPLES, PARAMETERS = 10_000, 8_000_000


def requested(**options):
    chosen = PruneOptions.of(**{"model": "tiny-llava", "rate": 0.6, "distill": "none", **options})
    return resolve_request(
        request_of(chosen, facts_of("tiny-llava"), on_cpu=True), PARAMETERS
    ).request


def test_comp_trains_only_the_cut_model_unless_stages_train():
    request = requested(recover_steps=300)  # 96 steps of the search are left to recovery
    assert training_passes(request, EXAMPLES) == pytest.approx(3 * 0.4 * 396)
    training = requested(recover_steps=300, train_stages=True)
    assert training_passes(training, EXAMPLES) == pytest.approx(3 * 96 + 3 * 0.4 * 300)


def test_steps_of_other_searches_count_as_dense():
    request = requested(method="upop", recover_steps=300)
    assert training_passes(request, EXAMPLES) == pytest.approx(3 * 96 + 3 * 0.4 * 300)


def test_a_model_pruned_by_time_may_keep_its_flops():
    request = requested(recover_steps=300)
    request = replace(request, search=replace(request.search, rate_of="latency"))
    assert training_passes(request, EXAMPLES) == pytest.approx(3 * 396)


def test_the_teacher_adds_a_pass_for_each_batch_that_it_has_not_seen():
    own = 3 * 0.4 * 396
    once = requested(recover_steps=300, distill="logits", recover_examples=640)
    assert training_passes(once, EXAMPLES) == pytest.approx(own + 20)
    assert training_passes(once, 320) == pytest.approx(own + 10)
    many = requested(recover_steps=300, distill="logits", recover_examples=100_000)
    assert training_passes(many, 200_000) == pytest.approx(own + 396)


class Model:
    """Scores a batch of 8 rows, in 5 s the first time and in 2 s from then on."""

    def __init__(self, monkeypatch):
        self.now, self.passes = 0.0, 0
        monkeypatch.setattr(opening, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def score(self, batch, forwarding):
        self.now += 2.0 if self.passes else 5.0
        self.passes += 1
        return SimpleNamespace(loss=1.0)

    def rows(self, batch):
        return 8


COMPUTE = SimpleNamespace(
    device=SimpleNamespace(type="cpu"), autocast=nullcontext, shard_size=lambda size: size
)


def test_seconds_follow_from_the_faster_of_two_passes(monkeypatch):
    data = SimpleNamespace(calibration=[object()], train=range(EXAMPLES))
    request = requested(recover_steps=304, stages=8, steps_per_stage=12)
    seconds = training_seconds(request, Model(monkeypatch), data, COMPUTE, PARAMETERS)
    assert seconds == pytest.approx(3 * 0.4 * 400 * (32 / 8) * 2.0)


def test_without_training_nothing_is_measured_and_no_recovery_promised(monkeypatch):
    data = SimpleNamespace(calibration=[object()], train=range(EXAMPLES))
    request, model = requested(recover="none"), Model(monkeypatch)
    assert training_seconds(request, model, data, COMPUTE, PARAMETERS) is None
    assert model.passes == 0
    assert opening_of(request, resumed=False).endswith("a search of 8 stages, then no recovery")


def test_the_opening_names_the_steps():
    ours = opening_of(requested(recover_steps=300), resumed=False)
    assert ours.endswith("by comp: a search of 8 stages, then 396 steps of recovery")
    theirs = opening_of(requested(method="upop", recover_steps=300), resumed=True)
    assert theirs.startswith("prune: resuming tiny-llava, 60% of its FLOPs by upop: ")
    assert theirs.endswith("up to 96 training steps, then 300 steps of recovery")
