"""The steps of a pruning run: search and cut, recover, validate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from comp.adapter import FamilyAdapter, Forwarding
from comp.errors import CompExportError
from comp.latency.table import LatencyTable
from comp.masks import BlockShape
from comp.pipeline.request import PruneRequest
from comp.pipeline.resolve import ResolvedRequest
from comp.plan import BlockPlan, Part, PruningPlan
from comp.registry.methods import method_called
from comp.search.job import Outcome, PruningJob
from comp.tokens.drop_rules import rules_from_plan
from comp.training.data import PruningData
from comp.training.distillation import Distiller
from comp.training.recovery import recover
from comp.training.trainer import accuracy
from comp.utils.compute import Compute
from comp.utils.progress import Progress

if TYPE_CHECKING:
    from comp.latency.table import LatencyTable

RATE_MARGIN = 0.02  # between the requested rate and that of a method's plan


@dataclass(frozen=True)
class RunContext:
    """The parts of a run that all its steps share.

    Attributes:
        load: loads the dense model.
        table: predicts milliseconds; ``None`` counts FLOPs alone.
    """

    compute: Compute
    load: Callable[[], FamilyAdapter]
    data: PruningData
    progress: Progress
    table: LatencyTable | None


def job_of(
    context: RunContext,
    settings: ResolvedRequest,
    adapter: FamilyAdapter,
    folder: Path,
    distiller: Distiller | None = None,
) -> PruningJob:
    """Return the job that a pruning method is given."""
    return PruningJob(
        adapter,
        context.compute,
        context.data,
        settings.request.search,
        settings.request.model,
        folder,
        context.progress,
        distiller,
        context.table,
    )


def search_and_cut(
    context: RunContext, settings: ResolvedRequest, folder: Path, loaded: list[FamilyAdapter]
) -> tuple[FamilyAdapter, Outcome, Distiller | None]:
    """Search with the method of the request, and cut the model by its plan.

    Args:
        context: compute, data and progress of the run.
        settings: the resolved request.
        folder: where the search is saved, and resumed from.
        loaded: the dense model, if it is in memory; it is popped from the list.

    Returns:
        The slim model, the outcome of the search, and the teacher if recovery can use it.
    """
    request = settings.request
    adapter = loaded.pop() if loaded else context.load()
    adapter.train_parts(_trained_parts(adapter, settings.trains))
    distiller = settings.distiller(context.compute, context.load, adapter)
    with settings.wrapping(adapter):
        method = method_called(request.method)
        outcome = method.load()(job_of(context, settings, adapter, folder, distiller))
    if method.code is not None:  # a user's
        check_outcome(outcome, adapter, request)
    if settings.recovery == "lora":
        distiller = None  # its teacher was this model, whose weights now include LoRA's
    return adapter.cut(outcome.plan), outcome, distiller


def check_outcome(outcome: object, adapter: FamilyAdapter, request: PruneRequest) -> None:
    """Refuse an outcome of a method that does not fit the model or the request.

    Raises:
        CompExportError: no outcome, a plan of another model, or of another rate.
    """
    method, rate = request.method, request.search.rate
    if not isinstance(outcome, Outcome):
        raise CompExportError(
            f"method {method} returned a {type(outcome).__name__}: return a comp.Outcome"
        )
    plan = outcome.plan
    if plan.family != adapter.name or not _same_blocks(plan, adapter):
        raise CompExportError(
            f"method {method} returned a plan of another model, {plan.model} ({plan.family}): plan all "
            "blocks of job.adapter, as comp.search.final_plan does"
        )
    if abs(plan.rate - rate) > RATE_MARGIN:
        raise CompExportError(
            f"method {method} returned a plan at rate {plan.rate:.3f} for a requested {rate:g}: meet it "
            f"within {RATE_MARGIN:g}, as comp.search.final_plan does"
        )


def _same_blocks(plan: PruningPlan, adapter: FamilyAdapter) -> bool:
    """Whether a plan names exactly the blocks of a model, in their sizes."""

    def sizes(blocks: Sequence[BlockShape] | Sequence[BlockPlan]) -> dict[object, object]:
        return {
            (each.part, each.index): (
                each.num_attention_heads,
                each.num_key_value_heads,
                each.intermediate_size,
            )
            for each in blocks
        }

    return sizes(plan.blocks) == sizes(adapter.blocks)


def recover_slim(
    context: RunContext,
    settings: ResolvedRequest,
    slim: FamilyAdapter,
    plan: PruningPlan,
    folder: Path,
    distiller: Distiller | None,
    until: int | None = None,
) -> None:
    """Train the slim model in place; only the first ``until`` steps if that is given."""
    request = settings.request
    if request.recover.steps == 0:
        return
    slim.train_parts(_trained_parts(slim, settings.trains))
    with settings.wrapping(slim):
        recover(
            slim,
            plan,
            context.compute,
            context.data,
            request.recover,
            folder,
            context.progress,
            distiller,
            until,
        )


def validate(context: RunContext, slim: FamilyAdapter, plan: PruningPlan) -> tuple[float, float]:
    """Measure validation metric and loss (in nats) of the slim model, with the plan's token drops."""
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    with context.progress.step("measuring the pruned model on the validation examples"):
        return accuracy(slim, context.data.validation, forwarding, context.compute)


def _trained_parts(adapter: FamilyAdapter, modes: tuple[str, ...]) -> set[Part]:
    """Return the parts to train: the language model, and parts that these or the default modes prune.

    With the default modes, a method that only drops tokens trains as much of the model as CoMP does.
    """
    pruning = {*modes, *adapter.default_modes}
    parts: set[Part] = {mode.part for mode in adapter.modes if mode.part and mode.name in pruning}
    return parts | {"language"}
