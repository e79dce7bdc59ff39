"""Recovery on batches that repeat: their order, and a teacher that computes each once."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comp.adapter import Forwarding
from comp.training.data import PruningData
from comp.training.distillation import Distiller, DistillOptions, feature_loss
from comp.training.known_targets import KnownTargets
from comp.training.recovery import RecoverOptions, recover
from comp.training.trainer import StepOptions, Trainer, repeated
from comp.utils.compute import Compute
from comp.utils.progress import Progress
from tests.comp import small

CPU = Compute("cpu", "float32")
SEED = 11


class CountingTeacher(Distiller):
    """A teacher that counts the batches it computes targets for."""

    def __init__(self, seed=1, what="both"):
        super().__init__(DistillOptions(what), small.small_adapter(seed), CPU)
        self.computed = 0

    def targets(self, batch):
        self.computed += 1
        return super().targets(batch)


@given(count=st.integers(1, 9), epochs=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_epoch_has_each_batch_once_and_the_first_is_in_order(count, epochs, seed):
    numbers = [repeated(step, count, seed) for step in range(count * epochs)]
    assert numbers[:count] == list(range(count))
    for epoch in range(epochs):
        assert sorted(numbers[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_later_epoch_is_in_another_order():
    assert [repeated(16 + place, 16, SEED) for place in range(16)] != list(range(16))


@pytest.mark.parametrize(
    ("examples", "count", "expected"), [(None, 100, None), (64, 100, 2), (65, 100, 3), (64, 40, 2)]
)
def test_distinct_examples_are_whole_batches_of_those_that_there_are(examples, count, expected):
    options = RecoverOptions(examples=examples, training=StepOptions(batch_size=32))
    assert options.batches_of(count) == expected


def trained(steps, examples, teacher, folder, until=None):
    """Weights after recovery."""
    adapter = small.small_adapter(SEED)
    adapter.model.requires_grad_(requires_grad=True)
    plan = SimpleNamespace(drops=[])  # all that recovery reads of a plan
    options = RecoverOptions(
        steps=steps,
        save_every=1,
        training=StepOptions(batch_size=2, learning_rate=1e-3),
        examples=examples,
    )
    folder.mkdir(exist_ok=True)
    data = PruningData(small.questions(24), [], [])
    recover(adapter, plan, CPU, data, options, folder, Progress(quiet=True), teacher, until)
    return torch.cat([p.detach().flatten() for p in adapter.model.parameters()])


def test_the_teacher_computes_each_batch_once_and_a_resumed_run_ends_the_same(tmp_path):
    teacher = CountingTeacher()
    once = trained(7, 6, teacher, tmp_path / "once")
    assert teacher.computed == 3
    again = CountingTeacher()
    trained(7, 6, again, tmp_path / "resumed", until=4)
    resumed = trained(7, 6, again, tmp_path / "resumed")
    assert torch.equal(once, resumed)
    free = CountingTeacher()
    other = trained(7, None, free, tmp_path / "free")
    assert free.computed == 7
    assert not torch.equal(once, other)


def test_kept_targets_teach_as_those_computed_anew():
    teacher = CountingTeacher()
    student = small.small_adapter(SEED)
    trainer = Trainer(student, CPU, StepOptions(), 1, teacher)
    batch = student.collate(small.questions(3))
    known = KnownTargets(trainer, repeat=True)
    first, second = known.of(0, batch), known.of(0, batch)
    assert first is second
    fresh = teacher.targets(batch)
    for kept, new in zip(first.logits, fresh.logits, strict=True):
        assert torch.equal(kept, new)
    tokens = student.score(batch, Forwarding()).targets().tokens
    for kept, new, own in zip(first.tokens, fresh.tokens, tokens, strict=True):
        assert kept.states.dtype == torch.bfloat16
        assert float(feature_loss(own, kept)) == pytest.approx(
            float(feature_loss(own, new)), abs=1e-3
        )
        assert torch.equal(kept.index, new.index)


def test_beyond_the_largest_size_targets_are_computed_each_time():
    teacher = CountingTeacher()
    student = small.small_adapter(SEED)
    trainer = Trainer(student, CPU, StepOptions(), 1, teacher)
    batch = student.collate(small.questions(3))
    known = KnownTargets(trainer, repeat=True, largest=10)
    assert known.of(0, batch) is not None
    assert known.of(0, batch) is not None
    assert teacher.computed == 2
    assert KnownTargets(Trainer(student, CPU, StepOptions(), 1), repeat=True).of(0, batch) is None
