"""`comp-export prune --distill`: the dense model teaches in every step; interruptions change nothing."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.registry.families import FAMILIES
from comp.registry.methods import METHODS
from comp.runs import open_run
from comp.search.job import PruningJob
from comp.training import recovery
from comp.training.distillation import Distiller, DistillOptions
from tests.comp.commands.test_prune_command import prune as prune_checkpoint
from tests.comp.jobs import PARAMETERS, small_job

QUICK = ("--stages", "2", "--steps-per-stage", "1", "--recover-steps", "3", "--batch-size", "2")
QUICK += ("--calibration", "4", "--validation", "4")
STEPS = 2 + 3


class Cut(Exception):
    """Raised instead of a kill."""


def prune(checkpoint, out, *more):
    return prune_checkpoint(checkpoint, out, *QUICK, *more)


@pytest.fixture
def lessons(monkeypatch):
    """Every batch that a teacher saw, with the targets that it gave."""
    seen = []
    targets = Distiller.targets

    def noting(self, batch):
        seen.append((batch, targets(self, batch)))
        return seen[-1][1]

    monkeypatch.setattr(Distiller, "targets", noting)
    return seen


def weights(path):
    return load_file(path / "checkpoint" / "model.safetensors")


def steps_of(path):
    return open_run(path).read_record()["steps"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recover", ["full", "lora"])
def test_the_teacher_is_the_dense_model_in_every_step(checkpoint, tmp_path, lessons, recover):
    prune(checkpoint, tmp_path / "run", "--distill", "logits", "--recover", recover, "--lr", "1e-2")
    assert len(lessons) == sum(steps_of(tmp_path / "run").values()) >= STEPS
    dense = load_adapter(checkpoint)
    for batch, known in lessons:
        with torch.no_grad():
            expected = dense.score(batch, Forwarding()).targets()
        assert torch.equal(known.logits[0], expected.logits[0])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["reconstruction"] == (recover == "full")  # LoRA's teacher must stay as it is


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_that_trains_learns_from_the_teacher_in_all_its_steps(
    tmp_path, lessons, method
):
    family = [name for name in method.families if name in PARAMETERS][-1]
    job = small_job(family, tmp_path / "state", 0.15)  # all methods reach it on such models
    known = next(each for each in FAMILIES if each.name == family)
    modes = method.modes_among(job.adapter.default_modes, known)
    options = replace(job.options, modes=modes)
    teacher = deepcopy(job.adapter)
    distiller = Distiller(DistillOptions("both"), teacher, job.compute)
    outcome = method.load()(replace(job, options=options, distiller=distiller))
    assert len(lessons) == outcome.steps


def test_a_distilled_run_interrupted_twice_gives_the_same_result(checkpoint, tmp_path, monkeypatch):
    options = ("--distill", "both", "--distill-weight", "0.5", "--distill-temperature", "4")
    options += ("--recover-steps", "8")
    often = partial(recovery.RecoverOptions, save_every=1)
    monkeypatch.setattr(recovery, "RecoverOptions", often)
    prune(checkpoint, tmp_path / "whole", *options)
    recorded = open_run(tmp_path / "whole").read_record()["request"]["distill"]
    assert recorded == {"what": "both", "weight": 0.5, "temperature": 4.0}

    out, trained, saved = tmp_path / "cut", PruningJob.train, recovery._save
    with monkeypatch.context() as patch:
        stages = []

        def cut_in_the_second_stage(job, *forwarding):
            stages.append(forwarding)
            if len(stages) == 2:
                raise Cut
            trained(job, *forwarding)

        patch.setattr(PruningJob, "train", cut_in_the_second_stage)
        with pytest.raises(Cut):
            prune(checkpoint, out, *options)
    with monkeypatch.context() as patch:

        def cut_in_recovery(path, trainer, step):
            saved(path, trainer, step)
            if step == 2:
                raise Cut

        patch.setattr(recovery, "_save", cut_in_recovery)
        with pytest.raises(Cut):
            prune(checkpoint, out, *options, "--resume")
    assert (out / ".state" / "recover.pt").is_file()
    with pytest.raises(CompExportError, match=r"distill\.weight 0\.5, not 2\.0"):
        prune(checkpoint, out, *options, "--resume", "--distill-weight", "2")
    prune(checkpoint, out, *options, "--resume")
    assert_same(weights(out), weights(tmp_path / "whole"))


def test_distillation_without_training_is_refused(checkpoint, tmp_path):
    with pytest.raises(CompExportError, match="--distill both is for training"):
        prune(checkpoint, tmp_path / "run", "--distill", "both", "--recover", "none")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "given", "taught"),
    [
        ("tiny-llava", (), ("both", 1.0, 5e-4)),
        ("tiny-llava", ("--recover", "none"), ("none", 1.0, 5e-4)),
        ("tiny-llava", ("--distill", "none"), ("none", 1.0, 5e-4)),
        ("tiny-clip", (), ("both", 1.0, 5e-4)),
        ("tiny-blip-vqa", (), ("none", 1.0, 5e-4)),
        ("tiny-blip-vqa", ("--distill", "logits"), ("logits", 1.0, 5e-4)),
        ("tiny-blip-nlvr", (), ("features", 10.0, 1e-3)),
        ("tiny-blip-nlvr", ("--distill-weight", "2"), ("features", 2.0, 1e-3)),
        ("tiny-blip-nlvr", ("--recover-lr", "1e-4"), ("features", 10.0, 1e-4)),
        # The settings for features do not apply without them.
        ("tiny-blip-nlvr", ("--distill", "none"), ("none", 1.0, 5e-4)),
        ("tiny-blip-nlvr", ("--faithful",), ("none", 1.0, 5e-4)),
        ("tiny-blip-nlvr", ("--recover", "none"), ("none", 1.0, 5e-4)),
    ],
)
def test_default_distillation_targets_depend_on_the_model(
    tmp_path, monkeypatch, model, given, taught
):
    def stop(request, *_, **__):
        learnt, rate = request.distill, request.recover.training.learning_rate
        raise InterruptedError((learnt.what, learnt.weight, rate))

    monkeypatch.setattr("comp.pipeline.prune.run_pruning", stop)
    with pytest.raises(InterruptedError) as stopped:
        prune(model, tmp_path / "run", *given)
    assert stopped.value.args == (taught,)
