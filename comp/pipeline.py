"""`comp-export prune` from start to end: search, cut, recover, measure, write a run directory."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from comp.checkpoints import resolve_model
from comp.compute import Compute
from comp.distillation import Distiller, DistillOptions
from comp.errors import CompExportError
from comp.families.base import FamilyAdapter, Forwarding
from comp.families.loading import load_adapter
from comp.figures import save_figures
from comp.files import disk_errors, write_text, writing_directory
from comp.latency_files import TableFile
from comp.latency_table import LatencyTable, dense_block
from comp.lora import is_large, lora, without_lora
from comp.methods.base import Job, MethodOptions, Outcome, method, modes_of, reaches
from comp.plan import Part, PruningPlan, Task
from comp.progress import Progress
from comp.pruning_data import DataSizes, PruningData, embedded_data, own_data, split_data
from comp.race import Lane, Verdict, check_steps, has_room, lanes_of, winner
from comp.recover import RecoverOptions, recover
from comp.runs import RUN_VERSION, RunDirectory, dotted
from comp.search_state import STAGES
from comp.tokens import rules_from_plan
from comp.training_loop import accuracy

Recovery = Literal["auto", "full", "lora", "none"]
STATE_FOLDER = ".state"
REQUEST = "request.json"
VERDICT = "verdict.json"  # of a lane of a race


@dataclass(frozen=True)
class PruneRequest:
    """Everything a pruning run depends on; stored, so that a resumed run is the same run."""

    model: str
    method: str
    search: MethodOptions
    recover: RecoverOptions
    sizes: DataSizes
    recovery: Recovery = "auto"
    lora_rank: int = 32
    data: str | None = None
    images: str | None = None
    distill: DistillOptions = field(default_factory=DistillOptions)
    faithful: bool = False  # asked to be the paper's recipe
    table: TableFile | None = None
    race: int = 0  # steps of recovery before lanes are compared (``comp.race``); 0: no race
    race_if_room: bool = False  # nobody asked for it: not where it would leave little to the winner

    def __post_init__(self) -> None:
        if self.distill.what != "none" and self.recovery == "none":
            raise CompExportError(
                f"--distill {self.distill.what} is for training, and --recover none trains nothing: "
                "leave one of them out"
            )


def run_pruning(
    request: PruneRequest,
    run: RunDirectory,
    compute: Compute,
    device_map: str | None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Carry a request out in a run directory, going on where an earlier call was cut off.

    Returns the content of ``run.json``.
    """
    progress = Progress(quiet or not compute.is_main)
    began = time.time()
    compute.seconds.clear()
    state = run.path / STATE_FOLDER
    resumed = (state / REQUEST).exists()
    torch.manual_seed(request.search.seed)
    directory = resolve_model(request.model)

    def load() -> FamilyAdapter:
        return load_adapter(directory, compute.device, device_map)

    adapter = load()
    modes_of(adapter, request.search.modes)
    table = _table(request, adapter)
    data = _data(request, adapter, compute)
    # Not before: a model, modes or data that are refused leave nothing to resume.
    compute.accelerator.wait_for_everyone()  # until every process has found the place free
    if compute.is_main:
        with disk_errors(run.path):
            state.mkdir(parents=True, exist_ok=True)
        write_text(state / REQUEST, json.dumps(_plain(request), indent=1))
    settings = _settled(request, adapter)
    loaded = [adapter]
    del adapter  # recovery needs the memory: whoever takes it from the list has it alone
    prepared = time.time()
    site = _Site(compute, load, data, progress, table)
    folder = state
    verdicts: list[dict[str, Any]] = []
    if request.race:
        settings, folder, verdicts = _raced(site, settings, state, loaded)
    slim, outcome, distiller = _searched(site, settings, folder, loaded)
    searched, of_search = time.time(), dict(compute.seconds)
    settings = settings.with_steps_left_by(outcome)
    distiller = distiller or settings.distiller(compute, load)
    _recovered(site, settings, slim, outcome.plan, folder, distiller)
    metric, _ = _validated(site, slim, outcome.plan)
    record = _record(request, run, directory, outcome, metric, settings, slim.task)
    if verdicts:
        record["race"] = verdicts
        record["steps"]["search"] += (len(verdicts) - 1) * (outcome.steps + request.race)
    record |= _times(outcome.plan, table)
    record["processes"] = compute.processes
    record["resumed"] = resumed
    ended = time.time()
    record["seconds"] = {"search": searched - began, "recovery": ended - searched}
    record["seconds"] |= compute.seconds
    record["times_fine_tuning"] = {
        "search": _times_fine_tuning(searched - prepared, of_search),
        "whole": _times_fine_tuning(ended - prepared, compute.seconds),
    }
    if compute.is_main:
        _write_run(run, slim, outcome.plan, record, state, folder)
    compute.accelerator.wait_for_everyone()
    return record


@dataclass(frozen=True)
class _Site:
    """What all searches of a run are given."""

    compute: Compute
    load: Callable[[], FamilyAdapter]
    data: PruningData
    progress: Progress
    table: LatencyTable | None


def _job(
    site: _Site,
    settings: "_Settled",
    adapter: FamilyAdapter,
    folder: Path,
    distiller: Distiller | None = None,
) -> Job:
    request, where = settings.request, (folder, site.progress, distiller, site.table)
    return Job(adapter, site.compute, site.data, request.search, request.model, *where)


def _searched(
    site: _Site, settings: "_Settled", folder: Path, loaded: list[FamilyAdapter]
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
        outcome = method(request.method)(_job(site, settings, adapter, folder, distiller))
    if settings.recovery == "lora":
        distiller = None  # its teacher was this model, which holds what LoRA learnt now
    return adapter.cut(outcome.plan), outcome, distiller


def _lanes(job: Job) -> list[Lane]:
    modes = modes_of(job.adapter, job.options.modes)
    return lanes_of(modes, lambda some: reaches(job, some))


def _raced(
    site: _Site, settings: "_Settled", state: Path, loaded: list[FamilyAdapter]
) -> tuple["_Settled", Path, list[dict[str, Any]]]:
    """The settings of the lane that won, the folder in which it goes on, and what became of all.

    A lane that is cut off goes on as any search does; one that has its verdict is not run again.
    """
    request, compute = settings.request, site.compute
    lanes = _lanes(_job(site, settings, loaded[0], state))
    search, steps = request.search.comp_steps, request.search.steps + request.recover.steps
    crowded = request.race_if_room and not has_room(search, request.race, steps)
    if len(lanes) == 1 or crowded:
        return settings, state, []
    check_steps(lanes, search, request.race, steps)
    lost = (len(lanes) - 1) * (search + request.race)
    settings = settings.with_recovery_of(request.recover.steps - lost)
    verdicts = []
    for lane in lanes:
        folder, lane_settings = state / lane.name, settings.with_search(modes=lane.modes)
        file = folder / VERDICT
        if not file.exists():
            if compute.is_main:
                folder.mkdir(exist_ok=True)
            compute.accelerator.wait_for_everyone()
            slim, outcome, distiller = _searched(site, lane_settings, folder, loaded)
            distiller = distiller or lane_settings.distiller(compute, site.load)
            plan, lane_settings = outcome.plan, lane_settings.with_steps_left_by(outcome)
            _recovered(site, lane_settings, slim, plan, folder, distiller, until=request.race)
            metric, loss = _validated(site, slim, plan)
            del slim, distiller
            if compute.is_main:
                write_text(file, json.dumps({"loss": loss, "metric": metric}))
            compute.accelerator.wait_for_everyone()
        verdicts.append(Verdict(lane, **json.loads(file.read_text())))
    won = winner(verdicts)
    records = [verdict.record(verdict.lane == won) for verdict in verdicts]
    return settings.with_search(modes=won.modes), state / won.name, records


@dataclass(frozen=True)
class _Settled:
    """A request with ``auto`` decided by the size of the model.

    Attributes:
        trains: the modes asked for, whose parts train: a race may leave some of them.
    """

    request: PruneRequest
    recovery: Recovery
    trains: tuple[str, ...]

    def with_steps_left_by(self, outcome: Outcome) -> "_Settled":
        """Recovery takes the steps of the search that the method left, or gives those it took more."""
        request = self.request
        steps = request.recover.steps + request.search.steps - outcome.steps
        return self.with_recovery_of(max(0, steps))

    def with_recovery_of(self, steps: int) -> "_Settled":
        recovery = replace(self.request.recover, steps=steps)
        return replace(self, request=replace(self.request, recover=recovery))

    def with_search(self, **changes: Any) -> "_Settled":
        search = replace(self.request.search, **changes)
        return replace(self, request=replace(self.request, search=search))

    def wrapping(self, adapter: FamilyAdapter) -> AbstractContextManager[None]:
        if self.recovery != "lora":
            return nullcontext()
        torch.manual_seed(self.request.search.seed)  # LoRA starts from random matrices
        return lora(adapter, self.request.lora_rank)

    def distiller(
        self,
        compute: Compute,
        load: Callable[[], FamilyAdapter],
        student: FamilyAdapter | None = None,
    ) -> Distiller | None:
        """The dense model to learn from, if that is asked for.

        Args:
            compute: where it runs.
            load: makes a second model of the dense weights.
            student: the dense model that is being pruned. Under LoRA its own weights do not change, so
                that it is its own teacher.
        """
        options = self.request.distill
        if options.what == "none":
            return None
        if self.recovery == "lora" and student is not None:
            return Distiller(options, student, compute, lambda: without_lora(student))
        teacher = load()
        teacher.model.requires_grad_(requires_grad=False)
        return Distiller(options, teacher, compute)


def _settled(request: PruneRequest, adapter: FamilyAdapter) -> _Settled:
    recovery = request.recovery
    if recovery == "auto":
        recovery = "lora" if is_large(adapter) else "full"
    if recovery == "none":
        request = replace(
            request,
            search=replace(request.search, steps_per_stage=0),
            recover=replace(request.recover, steps=0),
        )
    if recovery == "lora":  # the model's own weights stay: they are the teacher's, and not saved
        request = replace(request, search=replace(request.search, reconstruct=False))
    return _Settled(request, recovery, request.search.modes)


def _trained_parts(adapter: FamilyAdapter, modes: tuple[str, ...]) -> set[Part]:
    """The language model, and the parts that these modes or those of CoMP by default prune.

    So that a method which drops tokens alone trains, and recovers, as much of the model as CoMP.
    """
    pruning = {*modes, *adapter.default_modes}
    parts: set[Part] = {mode.part for mode in adapter.modes if mode.part and mode.name in pruning}
    return parts | {"language"}


def _table(request: PruneRequest, adapter: FamilyAdapter) -> LatencyTable | None:
    """The latency table of the request.

    Raises:
        CompExportError: it is gone, damaged, or of another model.
    """
    if request.table is None:
        return None
    table = LatencyTable.load(Path(request.table.path))
    blocks = [dense_block(block) for block in adapter.blocks]
    table.check_fits(adapter.name, blocks, request.table.path)
    return table


def _times(plan: PruningPlan, table: LatencyTable | None) -> dict[str, Any]:
    """What ``run.json`` says of predicted time."""
    if table is None:
        return {}
    return {
        "milliseconds": {"dense": plan.milliseconds_dense, "compressed": plan.milliseconds},
        "latency_target": table.target.model_dump(),
    }


def _data(request: PruneRequest, adapter: FamilyAdapter, compute: Compute) -> PruningData:
    if request.data is None:
        return embedded_data(adapter, compute, request.sizes)
    from comp.data.loading import has_splits, load_task_data

    path, images = Path(request.data), None if request.images is None else Path(request.images)
    if has_splits(path):
        train = load_task_data(adapter.task, path, images, "train")
        validation = load_task_data(adapter.task, path, images, "validation")
        return split_data(adapter, compute, request.sizes, train, validation)
    return own_data(adapter, compute, request.sizes, load_task_data(adapter.task, path, images))


def _recovered(
    site: _Site,
    settings: _Settled,
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


def _validated(site: _Site, slim: FamilyAdapter, plan: PruningPlan) -> tuple[float, float]:
    """The metric of the slim model, and its loss."""
    how = Forwarding(rules=rules_from_plan(plan.drops))
    return accuracy(slim, site.data.validation, how, site.compute)


def _write_run(
    run: RunDirectory,
    slim: FamilyAdapter,
    plan: PruningPlan,
    record: dict[str, Any],
    state: Path,
    folder: Path,
) -> None:
    # The record goes first and comes last: a run without it is not finished.
    run.record.unlink(missing_ok=True)
    for old in run.path.iterdir():
        if old.is_dir() and old != state:
            shutil.rmtree(old)
    with writing_directory(run.checkpoint) as temporary:
        slim.save(temporary)
    plan.save(run.plan_file)
    write_text(run.stages, (folder / STAGES).read_text())
    write_text(run.record, json.dumps(record, indent=1) + "\n")
    save_figures(run)
    run.point_latest_here()
    shutil.rmtree(state)


def _record(
    request: PruneRequest,
    run: RunDirectory,
    directory: Path,
    outcome: Outcome,
    metric: float,
    settings: _Settled,
    task: Task,
) -> dict[str, Any]:
    plan = outcome.plan
    return {
        "version": RUN_VERSION,
        "run": run.path.name,
        "model": request.model,
        "model_path": str(directory) if Path(request.model).is_dir() else None,
        "method": plan.method,
        "faithful": request.faithful,
        "modes": list(settings.request.search.modes),
        "rate_asked": request.search.rate,
        "rate": plan.rate,
        "rate_of": plan.rate_of,
        "macs": {"dense": plan.macs_dense, "compressed": plan.macs},
        "metric": {
            "name": _metric_name(request, task),
            "dense": outcome.dense_metric,
            "before_recovery": outcome.pruned_metric,
            "compressed": metric,
        },
        "recovery": settings.recovery,
        "reconstruction": settings.request.search.reconstruct,
        "steps": {"search": outcome.steps, "recovery": settings.request.recover.steps},
        "seed": request.search.seed,
        "request": _plain(request),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("comp-export", "torch", "transformers", "numpy")},
        },
    }


def _times_fine_tuning(wall: float, seconds: Mapping[str, float]) -> float | None:
    """How many times as long as plain fine-tuning of as many steps; none where nothing was trained.

    That is taken to last as long as this run's own steps did and the wait for their batches: steps with
    masks in the search, of the cut model in recovery, both without the teacher's pass.
    """
    if "training" not in seconds:
        return None
    return wall / (seconds["training"] + seconds["data"])


def _metric_name(request: PruneRequest, task: Task) -> str:
    """What accuracy is of: see ``Scored.correct``; of retrieval, the best of a batch, both ways."""
    return {
        "question": "validation exact match",
        "caption": "validation next-token accuracy",
        "statement": "validation accuracy",
        "retrieval": f"validation R@1 among {request.sizes.batch_size}",
    }[task]


def _plain(request: PruneRequest) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(request)))


def check_resumable(run: RunDirectory, request: PruneRequest) -> None:
    """Refuse to go on with other settings than the run was started with.

    Raises:
        CompExportError: naming the settings that differ, or when there is nothing to resume.
    """
    path = run.path / STATE_FOLDER / REQUEST
    if not path.is_file():
        raise CompExportError(f"nothing to resume in {run.path}: leave out --resume")
    stored = dotted(json.loads(path.read_text()))
    asked = dotted(_plain(request))
    different = [name for name, value in asked.items() if stored.get(name) != value]
    if different:
        name = different[0]
        raise CompExportError(
            f"{run.path} was started with {name} {stored.get(name)!r}, not {asked[name]!r}: resume with "
            "the same options, or start again with --force"
        )
