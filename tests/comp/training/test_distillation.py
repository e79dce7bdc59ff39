"""Distillation: its losses by hand, which weights they change, and the targets of every family."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.tokens.drop_rules import RatioRule
from comp.tokens.state import TEXT, VISION, TokenState
from comp.training.distillation import Distiller, DistillOptions, feature_loss, logit_loss
from comp.training.lora import lora, without_lora
from comp.training.trainer import StepOptions, Trainer
from comp.utils.compute import Compute
from tests.comp import small, small_blip
from tests.comp.small_clip import random_clip

CPU = Compute("cpu", "float32")
FAMILIES = ("llava", "clip", *small_blip.TASKS)


def model_of(family, seed=0):
    if family == "llava":
        return small.small_adapter(seed)
    return random_clip(seed) if family == "clip" else small_blip.random_blip(family, seed)


def batch_of(adapter, family, count=3):
    if family == "llava":
        return adapter.collate(small.questions(count))
    task = "retrieval" if family == "clip" else family
    return adapter.collate(small_blip.examples_of(task, count))


def dropping(adapter, ratio=0.6):
    """Tokens of every kind dropped at every place."""
    return Forwarding(rules={place: RatioRule(ratio, ratio) for place in adapter.drop_places})


def tokens_of(states, index, alive):
    index = torch.tensor(index)
    nothing = torch.zeros_like(index)
    return TokenState(states, index, nothing, torch.tensor(alive), index, nothing[:, 0])


def test_logit_loss_by_hand():
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # 3/4 and 1/4; 1/2 and 1/2
    student = torch.zeros(2, 2)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(logit_loss(student, teacher, 1.0)) == pytest.approx(first / 2)
    high = math.sqrt(3) / (1 + math.sqrt(3))  # of 3 : 1 at temperature 2
    soft = high * math.log(2 * high) + (1 - high) * math.log(2 * (1 - high))
    assert float(logit_loss(student, teacher, 2.0)) == pytest.approx(4 * soft / 2)
    # The teacher's probabilities weigh, not the student's.
    other = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(logit_loss(teacher, student, 1.0)) == pytest.approx(other / 2)


def test_feature_loss_by_hand():
    teacher = tokens_of(torch.eye(3)[None], [[0, 1, 2]], [[1.0, 1.0, 1.0]])
    # Token 2 has the teacher's direction, token 0 lies between two axes; token 1 is dropped.
    states = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 5.0]]])
    student = tokens_of(states, [[0, 2]], [[1.0, 1.0]])
    off = 1 - math.sqrt(0.5)
    assert float(feature_loss(student, teacher)) == pytest.approx(off / 2)
    fading = tokens_of(states, [[0, 2]], [[0.25, 1.0]])
    assert float(feature_loss(fading, teacher)) == pytest.approx(0.25 * off / 1.25)
    filled = tokens_of(states, [[0, 2]], [[0.0, 1.0]])  # a dropped place does not count
    assert float(feature_loss(filled, teacher)) == pytest.approx(0.0)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 3),
    count=st.integers(2, 9),
    ratios=st.tuples(st.floats(0.2, 1.0), st.floats(0.2, 1.0)),
)
def test_tokens_are_compared_with_the_teacher_by_index(seed, rows, count, ratios):
    random = torch.Generator().manual_seed(seed)
    index = torch.arange(count).expand(rows, -1)
    kind = torch.randint(VISION, TEXT + 1, (rows, count), generator=random)
    query = torch.randint(0, count, (rows,), generator=random)
    states = torch.randn(rows, count, 4, generator=random)
    teacher = TokenState(states, index, kind, torch.ones(rows, count), index, query)
    importance = torch.rand(rows, count, generator=random)
    kept, _ = teacher.drop(RatioRule(*ratios).keep(importance, kind, teacher.alive, query))
    assert float(feature_loss(kept, teacher)) == pytest.approx(0.0, abs=1e-6)
    moved = TokenState(states * -1, index, kind, teacher.alive, index, query)
    assert float(feature_loss(kept, moved)) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_comparable_after_any_drop(family):
    adapter, other = model_of(family), model_of(family, seed=1)
    batch = batch_of(adapter, family)
    with torch.no_grad():
        whole = adapter.score(batch, Forwarding()).targets()
        dropped = other.score(batch, dropping(other)).targets()
    distiller = Distiller(DistillOptions("both"), adapter, CPU)
    assert float(distiller.loss(whole, whole)) == pytest.approx(0.0, abs=1e-5)
    assert [t.shape for t in whole.logits] == [t.shape for t in dropped.logits]
    by_hand = []
    for left, all_ in zip(dropped.tokens, whole.tokens, strict=True):
        assert left.index.shape[1] < all_.index.shape[1]
        assert torch.equal(all_.index, torch.arange(all_.index.shape[1]).expand_as(all_.index))
        distances = [
            1 - torch.cosine_similarity(left.states[row, place], all_.states[row, index], dim=0)
            for row, kept in enumerate(left.index.tolist())
            for place, index in enumerate(kept)
            if left.alive[row, place] > 0
        ]
        by_hand.append(torch.stack(distances).mean())
    features = Distiller(DistillOptions("features", weight=3.0), adapter, CPU)
    expected = 3 * float(torch.stack(by_hand).mean())
    assert float(features.loss(dropped, whole)) == pytest.approx(expected, rel=1e-4)
    both = float(distiller.loss(dropped, whole))
    logits = float(Distiller(DistillOptions("logits"), adapter, CPU).loss(dropped, whole))
    assert both == pytest.approx(logits + expected / 3, rel=1e-4)


@pytest.mark.parametrize("family", ["llava", "clip"])
def test_logits_are_those_of_the_loss(family):
    adapter = model_of(family)
    batch = batch_of(adapter, family)
    with torch.no_grad():
        scored = adapter.score(batch, dropping(adapter))
        logits = scored.targets().logits
    own = torch.arange(3)
    wanted = [batch.labels[batch.labels >= 0]] if family == "llava" else [own, own]
    losses = [
        torch.nn.functional.cross_entropy(each, w) for each, w in zip(logits, wanted, strict=True)
    ]
    assert float(scored.loss) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "what"), [("llava", "both"), ("clip", "logits"), ("statement", "features")]
)
def test_only_the_student_learns_and_approaches_the_teacher(family, what):
    teacher, student = model_of(family), model_of(family, seed=1)
    teacher.model.requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    batch, forwarding = batch_of(teacher, family), dropping(student)
    distiller = Distiller(DistillOptions(what, weight=20.0), teacher, CPU)
    options = StepOptions(batch_size=3, learning_rate=2e-3, warmup_steps=0)
    trainer = Trainer(student, CPU, options, 8, distiller)

    def apart():
        with torch.no_grad():
            targets = student.score(batch, forwarding).targets()
        return float(distiller.loss(targets, distiller.targets(batch)))

    first = apart()
    for step in range(8):
        trainer.step(batch, forwarding, step)
    assert apart() < 0.9 * first
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(torch.equal(teacher.model.state_dict()[name], t) for name, t in before.items())


def test_targets_have_no_gradient_and_the_loss_reaches_the_student():
    teacher, student = model_of("clip"), model_of("clip", seed=1)
    distiller = Distiller(DistillOptions("both"), teacher, CPU)  # its weights could be trained
    batch = batch_of(teacher, "clip")
    taught = distiller.targets(batch)
    assert not any(t.requires_grad for t in taught.logits)
    assert not any(t.states.requires_grad for t in taught.tokens)
    distiller.loss(student.score(batch, dropping(student)).targets(), taught).backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    moved = [n for n, p in student.model.named_parameters() if p.grad is not None and p.grad.any()]
    assert "vision_model.embeddings.patch_embedding.weight" in moved
    assert "text_model.embeddings.token_embedding.weight" in moved


def test_the_base_weights_of_lora_are_the_unchanged_teacher():
    adapter = model_of("llava")
    batch = batch_of(adapter, "llava")
    with torch.no_grad():
        dense = adapter.score(batch, Forwarding()).targets()
    adapter.train_parts({"language"})
    with lora(adapter, 4):
        distiller = Distiller(DistillOptions("both"), adapter, CPU, lambda: without_lora(adapter))
        trainer = Trainer(adapter, CPU, StepOptions(3, 1e-2, warmup_steps=0), 3, distiller)
        names = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
        for step in range(3):
            trainer.step(batch, dropping(adapter), step)
        taught = distiller.targets(batch)
        assert {n for n, p in adapter.model.named_parameters() if p.requires_grad} == names
        with torch.no_grad():
            learnt = adapter.score(batch, Forwarding()).targets()
    torch.testing.assert_close(taught.logits[0], dense.logits[0], rtol=0, atol=0)
    assert not torch.allclose(learnt.logits[0], dense.logits[0], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "layers"}, "'layers': choose from none, logits"),
        ({"weight": 0.0}, "weight of 0 teaches nothing"),
        ({"temperature": -1.0}, "temperature of -1"),
    ],
)
def test_distillation_options_without_effect_are_refused(options, message):
    with pytest.raises(CompExportError, match=message):
        DistillOptions(**options)
