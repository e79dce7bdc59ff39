"""Defaults of pruning that depend on the model: they turn options into a request."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from comp.checkpoints.llava_shape import config_of
from comp.checkpoints.locate import resolve_model
from comp.checkpoints.model_size import STREAMED, ModelSize, parameters_of, size_of
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions, Recovery
from comp.registry.code import resolve
from comp.registry.families import FAMILIES, family_of
from comp.registry.family import Family, Teaching
from comp.registry.methods import method_called
from comp.registry.modes import mode_names

if TYPE_CHECKING:
    from comp.pipeline.request import PruneRequest

ALIGN: dict[ModelSize, int] = {"small": 16, "medium": 64, "large": 64}
# A stage is a few steps of a new optimiser: at the rate of recovery, eight cost dense tiny-llava 15 points.
SMALL_LR = 1e-4
LORA_LR, WHOLE_LR = 2e-4, 2e-5  # of models that are not small
COST_EXAMPLES = 64  # validation examples that the loss is measured on after a stage
RECOVERY_WARMUP = 10  # steps


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that defaults depend on, read from its checkpoint without loading it.

    Attributes:
        modes: the model's default modes.
        parameters: number of parameters.
        teaching: how a small model of this family and architecture is trained by default.
    """

    directory: Path
    family: Family
    modes: tuple[str, ...]
    parameters: int
    teaching: Teaching


@dataclass(frozen=True)
class SizeDefaults:
    """Defaults that follow from the number of parameters and from what is trained.

    Attributes:
        lora: whether adapters are trained instead of the model itself.
        lr, recover_lr: peak learning rates while pruning and of recovery.
        align: what FFN widths are multiples of.
        teaches: whether there is distillation by default, in families that have it: something is trained,
            and there is memory for a teacher.
    """

    lora: bool
    lr: float
    recover_lr: float
    align: int
    teaches: bool


def defaults_of_size(
    parameters: int, recovery: Recovery, small_recover_lr: float = 5e-4
) -> SizeDefaults:
    """Return the defaults of a model's size; see ``comp.checkpoints.model_size`` for the bounds.

    ==========================  =====  ==========  =====  =======
    model, what is trained      lr     recover_lr  align  teaches
    ==========================  =====  ==========  =====  =======
    small, whole or adapters    1e-4   the given   16     yes
    medium or large, adapters   2e-4   2e-4        64     yes
    medium, whole               2e-5   2e-5        64     yes
    large, whole                2e-5   2e-5        64     no
    ==========================  =====  ==========  =====  =======

    Args:
        parameters: number of parameters of the dense model.
        recovery: the kind of recovery. ``auto`` trains adapters of large models, and other models whole;
            ``none`` has the learning rates of ``auto``, and no teacher.
        small_recover_lr: learning rate of recovery for small models of the family.
    """
    size = size_of(parameters)
    lora = recovery_of(parameters, recovery) == "lora"
    adapted = lora or (recovery == "none" and size == "large")
    lr = SMALL_LR if size == "small" else LORA_LR if adapted else WHOLE_LR
    return SizeDefaults(
        lora=lora,
        lr=lr,
        recover_lr=small_recover_lr if size == "small" else lr,
        align=ALIGN[size],
        teaches=recovery != "none" and (lora or size != "large"),
    )


def recovery_of(parameters: int, recovery: Recovery) -> Recovery:
    """Return the kind of recovery, with ``auto`` decided by the number of parameters."""
    if recovery != "auto":
        return recovery
    return "lora" if size_of(parameters) == "large" else "full"


def facts_of(model: str) -> ModelFacts:
    """Read the facts that defaults depend on.

    Raises:
        CompExportError: there is no such model, its family cannot be pruned, or it is pruned already.
    """
    directory = resolve_model(model)
    config = config_of(model)
    family = family_of(config.get("model_type"))
    if family is None:
        known = ", ".join(kind for each in FAMILIES for kind in each.model_types)
        raise CompExportError(
            f"{model}: model_type is {config.get('model_type')!r}: what can be pruned is {known}"
        )
    if config.get("pruning") and not family.prunes_again:
        raise CompExportError(
            f"{model} is pruned already: prune the dense {family.name} model it was made of"
        )
    # Refuses sizes that are missing or do not fit together.
    resolve(family.shape).from_config(config, model)
    architecture = (config.get("architectures") or [""])[0]
    modes, teaching = family.defaults_of(architecture), family.teaching_of(architecture)
    return ModelFacts(directory, family, modes, parameters_of(directory), teaching)


def request_of(options: PruneOptions, facts: ModelFacts, on_cpu: bool) -> "PruneRequest":
    """Return the request of these options, with defaults filled in.

    Args:
        options: the options of the run.
        facts: facts about ``options.model``.
        on_cpu: whether the run computes on a CPU.

    Raises:
        CompExportError: options that do not fit the model or each other, or a latency table that is
            missing.
    """
    from comp.latency.files import table_for
    from comp.pipeline.request import PruneRequest
    from comp.search.job import MethodOptions
    from comp.search.stage import ImportanceOptions
    from comp.search.strategy import StrategyOptions
    from comp.training.data import DataSizes
    from comp.training.distillation import DistillOptions
    from comp.training.recovery import RecoverOptions
    from comp.training.trainer import StepOptions

    family = facts.family
    named = facts.modes if options.modes is None else mode_names(options.modes)
    modes = method_called(options.method).modes_among(named, family)
    table = table_for(options.model, family.name, options.cost, options.latency_table)
    stream = _stream(options, facts, on_cpu)
    teaching = teaching_of(options, facts)
    sized = defaults_of_size(facts.parameters, options.recover, teaching.recover_lr)
    align = options.align or sized.align
    is_comp = options.method == "comp"
    training = StepOptions(
        batch_size=options.batch_size,
        learning_rate=options.lr or sized.lr,
        tower=tower_rate(options.tower_lr, family, teaching),
    )
    search = MethodOptions(
        rate=options.rate,
        modes=modes,
        stages=options.stages,
        steps_per_stage=options.steps_per_stage,
        align=align,
        seed=options.seed,
        rate_of=options.cost,
        reconstruct=is_comp and not options.no_reconstruction,
        train_stages=options.train_stages,
        importance=ImportanceOptions(
            not options.no_cip, not options.no_cit, align, options.importance
        ),
        strategy=StrategyOptions(
            exploration=0.0 if options.no_exploration else options.exploration,
            temperature=options.temperature,
            history=0.0 if options.no_history else options.history,
            cost_aware=not options.no_cas,
            cost_metric=options.cost_metric,
            undo=options.undo,
        ),
        training=training,
    )
    races = is_comp and options.recover != "none" and options.modes is None
    return PruneRequest(
        model=options.model,
        method=options.method,
        search=search,
        recover=RecoverOptions(
            steps=options.recover_steps,
            seed=options.seed,
            examples=options.recover_examples,
            training=replace(
                training,
                learning_rate=options.recover_lr or options.lr or sized.recover_lr,
                warmup_steps=RECOVERY_WARMUP,
            ),
        ),
        sizes=DataSizes(
            options.calibration,
            options.validation,
            min(options.batch_size, options.calibration),
            _cost_examples(options),
            stream,
        ),
        recovery=options.recover,
        lora_rank=options.lora_rank,
        data=None if options.data is None else str(options.data),
        images=None if options.images is None else str(options.images),
        follow_links=options.follow_links,
        faithful=options.faithful,
        distill=DistillOptions(
            teaching.distill,
            options.distill_weight or teaching.weight,
            options.distill_temperature,
        ),
        table=table,
        race=options.race if options.race is not None else family.race if races else 0,
        race_if_room=options.race is None,
        stream=stream,
    )


def teaching_of(options: PruneOptions, facts: ModelFacts) -> Teaching:
    """Return the settings of distillation: those of the options, else the defaults of the model."""
    given, teaching = options.distill, facts.teaching
    if given is None and defaults_of_size(facts.parameters, options.recover).teaches:
        return teaching
    # The default weight and learning rate hold only for the default kind of distillation.
    return Teaching(given or "none", tower=teaching.tower)


def tower_rate(given: float | None, family: Family, teaching: Teaching) -> float:
    """Return the factor on the image tower's learning rate.

    Raises:
        CompExportError: a factor is given, and the family has no such tower.
    """
    if given is None:
        return teaching.tower
    if not family.reads_image_tokens and given != 1:
        raise CompExportError(
            f"--tower-lr {given:g} is for the image tower of a llava, and this is a {family.name}: leave "
            "it out"
        )
    return given


def _stream(options: PruneOptions, facts: ModelFacts, on_cpu: bool) -> bool:
    """Whether the matrices of the decoder stay in their files."""
    if options.stream is not None:
        return options.stream
    trains = options.recover != "none" or method_called(options.method).differentiates
    resident = trains or options.device_map is not None or not facts.family.streams
    return on_cpu and not resident and facts.parameters >= STREAMED


def _cost_examples(options: PruneOptions) -> int | None:
    """Number of validation examples that the cost of a stage is measured on; None: all."""
    if options.cost_metric == "loss" and options.cost_examples is None:
        return min(COST_EXAMPLES, options.validation)
    return options.cost_examples
