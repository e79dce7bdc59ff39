"""Defaults that depend on the model: decided in one place, by one size rule."""

from dataclasses import replace
from pathlib import Path

import pytest

from comp.checkpoints.locate import EMBEDDED
from comp.checkpoints.model_size import LARGE, MEDIUM, size_of
from comp.errors import CompExportError
from comp.pipeline.defaults import (
    ModelFacts,
    defaults_of_size,
    facts_of,
    recovery_of,
    request_of,
)
from comp.pipeline.options import PruneOptions
from comp.pipeline.request import as_json, check_resumable
from comp.pipeline.resolve import resolve_request
from comp.registry.families import FAMILIES, family_of
from comp.runs import RunDirectory, dotted

SEVEN_BILLION = 7_063_427_072
# CLIP-B/16 as OpenAI published it: 86.2 M (image), 37.8 M and its 25.3 M embedding (text), projections.
CLIP_B16 = 149_620_737


def facts(family, parameters):
    result = next(each for each in FAMILIES if each.name == family)
    return ModelFacts(Path("model"), result, result.default_modes, parameters, result.teaching)


def requested(family, parameters, on_cpu=True, **options):
    chosen = PruneOptions.of(model="m", rate=0.5, **options)
    return request_of(chosen, facts(family, parameters), on_cpu)


def outcome(request):
    """Return learning rates, alignment, distillation targets, and whether it streams."""
    rates = request.search.training.learning_rate, request.recover.training.learning_rate
    return *rates, request.search.align, request.distill.what, request.stream


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (0, "small"),
        (MEDIUM - 1, "small"),
        (MEDIUM, "medium"),
        (CLIP_B16, "medium"),
        (259_000_000, "medium"),
        (LARGE - 1, "medium"),
        (LARGE, "large"),
        (SEVEN_BILLION, "large"),
    ],
)
def test_size_rule(parameters, size):
    assert size_of(parameters) == size


def test_a_llava_of_259_million_is_trained_whole_at_its_learning_rate():
    request = requested("llava", 259_000_000)
    assert resolve_request(request, 259_000_000).recovery == "full"
    assert outcome(request) == (2e-5, 2e-5, 64, "both", False)
    # Adapters, where requested, have their own rates.
    assert outcome(requested("llava", 259_000_000, recover="lora"))[:2] == (2e-4, 2e-4)


def test_a_clip_b16_keeps_its_teacher():
    request = requested("clip", CLIP_B16)
    assert resolve_request(request, CLIP_B16).recovery == "full"
    assert outcome(request) == (2e-5, 2e-5, 64, "both", False)


@pytest.mark.parametrize(
    ("options", "recovery", "expected"),
    [
        ({}, "lora", (2e-4, 2e-4, 64, "both", False)),
        ({"recover": "lora"}, "lora", (2e-4, 2e-4, 64, "both", False)),
        ({"recover": "full"}, "full", (2e-5, 2e-5, 64, "none", False)),
        ({"recover": "full", "distill": "logits"}, "full", (2e-5, 2e-5, 64, "logits", False)),
        ({"recover": "none"}, "none", (2e-4, 2e-4, 64, "none", True)),
        ({"recover": "none", "stream": False}, "none", (2e-4, 2e-4, 64, "none", False)),
        ({"recover": "none", "method": "upop"}, "none", (2e-4, 2e-4, 64, "none", False)),
        ({"recover": "none", "device_map": "auto"}, "none", (2e-4, 2e-4, 64, "none", False)),
        ({"lr": 1e-5}, "lora", (1e-5, 1e-5, 64, "both", False)),
        ({"recover_lr": 1e-5}, "lora", (2e-4, 1e-5, 64, "both", False)),
    ],
)
def test_a_llava_of_seven_billion_is_trained_by_lora(options, recovery, expected):
    request = requested("llava", SEVEN_BILLION, **options)
    assert resolve_request(request, SEVEN_BILLION).recovery == recovery
    assert outcome(request) == expected


def test_only_a_cpu_streams():
    assert not requested("llava", SEVEN_BILLION, on_cpu=False, recover="none").stream


@pytest.mark.parametrize("model", EMBEDDED)
@pytest.mark.parametrize("recovery", ["auto", "full", "lora"])
def test_defaults_of_embedded_models(model, recovery):
    result = facts_of(model)
    request = request_of(PruneOptions.of(model=model, rate=0.5, recover=recovery), result, True)
    statements = model == "tiny-blip-nlvr"
    what = "features" if statements else "none" if "blip" in model else "both"
    assert outcome(request) == (1e-4, 1e-3 if statements else 5e-4, 16, what, False)
    assert request.distill.weight == (10.0 if statements else 1.0)
    assert request.search.training.tower == (
        0.1 if model in ("tiny-llava", "tiny-smolvlm") else 1.0
    )
    assert request.race == (4 if model == "tiny-clip" else 0)
    assert resolve_request(request, result.parameters).recovery == recovery.replace("auto", "full")


@pytest.mark.parametrize(
    ("given", "rates"),
    [((3e-4, None), (3e-4, 3e-4)), ((None, 1e-3), (1e-4, 1e-3)), ((2e-4, 3e-4), (2e-4, 3e-4))],
)
def test_given_learning_rates_are_used(given, rates):
    request = requested("llava", 8_000_000, lr=given[0], recover_lr=given[1])
    assert outcome(request)[:2] == rates


def test_trained_weights_depend_on_size_only():
    assert [recovery_of(size, "auto") for size in (0, LARGE - 1, LARGE)] == ["full", "full", "lora"]
    for recovery in ("full", "lora", "none"):
        assert recovery_of(SEVEN_BILLION, recovery) == recovery == recovery_of(0, recovery)
    assert defaults_of_size(LARGE, "auto").lora
    assert not defaults_of_size(LARGE, "none").teaches


def test_families_are_read_from_configurations():
    assert facts_of("tiny-blip-caption").family is family_of("blip")
    assert "language_tokens" not in facts_of("tiny-blip-caption").modes
    assert facts_of("tiny-llava").parameters == 8_292_832


SETTINGS = """
data images follow_links faithful lora_rank method model race race_if_room recovery stream table
distill.temperature distill.weight distill.what
recover.examples recover.save_every recover.seed recover.steps
search.align search.importance.cip search.importance.cit search.importance.formula
search.importance.min_channels search.modes
search.rate search.rate_of search.reconstruct search.seed search.stages search.steps_per_stage
search.strategy.cost_aware search.strategy.cost_metric search.strategy.exploration
search.strategy.history search.strategy.max_interval search.strategy.temperature search.strategy.undo
search.train_stages
sizes.batch_size sizes.calibrate_at_once sizes.calibration sizes.cost sizes.validation
"""
STEPS = "batch_size learning_rate tower warmup_steps weight_decay"


def test_a_request_has_the_settings_that_interrupted_runs_have_on_disk():
    """``--resume`` compares them by name: renaming one would refuse every older interrupted run."""
    steps = {f"{of}.training.{name}" for of in ("search", "recover") for name in STEPS.split()}
    assert set(dotted(as_json(requested("llava", 8_000_000)))) == {*SETTINGS.split(), *steps}


def test_a_run_begun_by_an_earlier_release_can_be_resumed(tmp_path):
    """Settings that its request lacks have the values that the release had."""
    request, run = requested("llava", 8_000_000), RunDirectory(tmp_path)
    old = as_json(request)
    del old["follow_links"], old["search"]["importance"]["formula"], old["recover"]["examples"]
    run.begin(old)
    check_resumable(run, request, tmp_path)
    other = replace(request.search.importance, formula="magnitude")
    changed = replace(request, search=replace(request.search, importance=other))
    with pytest.raises(CompExportError, match="formula 'cim', not 'magnitude'"):
        check_resumable(run, changed, tmp_path)
