"""The steps of a pruning run that train or measure: search, recover, validate."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from comp.adapter import FamilyAdapter, Forwarding
from comp.latency.table import LatencyTable
from comp.pipeline.resolve import ResolvedRequest
from comp.plan import Part, PruningPlan
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


@dataclass(frozen=True)
class RunContext:
    """What all searches of a run are given."""

    compute: Compute
    load: Callable[[], FamilyAdapter]
    data: PruningData
    progress: Progress
    table: LatencyTable | None


def job_of(
    site: RunContext,
    settings: ResolvedRequest,
    adapter: FamilyAdapter,
    folder: Path,
    distiller: Distiller | None = None,
) -> PruningJob:
    request, where = settings.request, (folder, site.progress, distiller, site.table)
    return PruningJob(adapter, site.compute, site.data, request.search, request.model, *where)


def searched(
    site: RunContext, settings: ResolvedRequest, folder: Path, loaded: list[FamilyAdapter]
) -> tuple[FamilyAdapter, Outcome, Distiller | None]:
    """The cut model, what the search found, and the teacher where it may go on.

    Args:
        loaded: the dense model, where it is in memory; it is taken from the list.
    """
    request = settings.request
    adapter = loaded.pop() if loaded else site.load()
    adapter.train_parts(_trained_parts(adapter, settings.trains))
    distiller = settings.distiller(site.compute, site.load, adapter)
    with settings.wrapping(adapter):
        outcome = method(request.method)(job_of(site, settings, adapter, folder, distiller))
    if settings.recovery == "lora":
        distiller = None  # its teacher was this model, which holds what LoRA learnt now
    return adapter.cut(outcome.plan), outcome, distiller


def recovered(
    site: RunContext,
    settings: ResolvedRequest,
    slim: FamilyAdapter,
    plan: PruningPlan,
    folder: Path,
    distiller: Distiller | None,
    until: int | None = None,
) -> None:
    """Recover the slim model in place, or its first steps."""
    request = settings.request
    if request.recover.steps == 0:
        return
    slim.train_parts(_trained_parts(slim, settings.trains))
    with settings.wrapping(slim):
        recover(
            slim,
            plan,
            site.compute,
            site.data,
            request.recover,
            folder,
            site.progress,
            distiller,
            until,
        )


def validated(site: RunContext, slim: FamilyAdapter, plan: PruningPlan) -> tuple[float, float]:
    """The metric of the slim model, and its loss."""
    how = Forwarding(rules=rules_from_plan(plan.drops))
    return accuracy(slim, site.data.validation, how, site.compute)


def _trained_parts(adapter: FamilyAdapter, modes: tuple[str, ...]) -> set[Part]:
    """The language model, and the parts that these modes or those of CoMP by default prune.

    So that a method which drops tokens alone trains, and recovers, as much of the model as CoMP.
    """
    pruning = {*modes, *adapter.default_modes}
    parts: set[Part] = {mode.part for mode in adapter.modes if mode.part and mode.name in pruning}
    return parts | {"language"}


def method(name: str) -> Callable[[PruningJob], Outcome]:
    """``prune`` of ``comp/methods/NAME.py`` (hyphens are underscores), of ``comp.registry.methods.METHODS``.

    It trains the adapter's trainable weights along, and raises ``CompExportError`` for a rate that the
    modes cannot reach (naming the largest reachable).
    """
    return import_module(f"comp.methods.{name.replace('-', '_')}").prune
