"""Prune a model from start to end: search, cut, recover, measure, write a run directory."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from comp.adapter import FamilyAdapter
from comp.checkpoints.dense_model import described
from comp.checkpoints.locate import resolve_model
from comp.checkpoints.model_size import parameters_of
from comp.data.example import AnyExample
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.latency.table import LatencyTable, dense_block
from comp.pipeline.defaults import facts_of, request_of
from comp.pipeline.opening import estimate_words, opening_of, training_seconds
from comp.pipeline.options import PruneOptions
from comp.pipeline.race import run_race
from comp.pipeline.record import record_of, times_fine_tuning, times_of, write_run
from comp.pipeline.request import DENSE, PruneRequest, as_json, check_resumable
from comp.pipeline.resolve import resolve_request
from comp.pipeline.run_data import FINGERPRINT, check_same_data, data_of
from comp.pipeline.steps import RunContext, recover_slim, search_and_cut, validate
from comp.runs import RunDirectory
from comp.search.job import modes_of
from comp.utils.compute import Compute
from comp.utils.progress import Callback, Progress


def prune_model(
    options: PruneOptions,
    run: RunDirectory,
    compute: Compute,
    quiet: bool = False,
    resume: bool = False,
    examples: Sequence[AnyExample] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Prune a model, as ``comp-export prune`` does.

    Args:
        options: options of the run.
        run: the run directory; the caller holds its lock and has called
            ``comp.pipeline.run_folder.check_free``.
        compute: device and precision (that of ``options.dtype``).
        quiet: show no progress.
        resume: continue the interrupted run in the directory.
        examples: own data, instead of the file that ``options.data`` names.
        callbacks: follow the run.

    Returns:
        The content of ``run.json``.

    Raises:
        CompExportError: the options do not fit the model, or, with ``resume``, differ from those that the
            run was started with.
    """
    facts = facts_of(options.model)
    request = request_of(options, facts, on_cpu=compute.device.type == "cpu")
    if examples is not None:
        request = replace(request, data=f"{len(examples)} examples")
    if resume:
        check_resumable(run, request, facts.directory)
    progress = Progress(quiet or not compute.is_main, callbacks)
    with progress.shown():
        return run_pruning(request, run, compute, options, progress, resume, examples)


def run_pruning(
    request: PruneRequest,
    run: RunDirectory,
    compute: Compute,
    options: PruneOptions,
    progress: Progress,
    resume: bool = True,
    examples: Sequence[AnyExample] | None = None,
) -> dict[str, Any]:
    """Carry a request out in a run directory.

    Args:
        request: the request.
        run: the directory; its lock is held.
        compute: device and precision.
        options: the options that the request was made from.
        progress: shows the work.
        resume: continue an interrupted run, if there is one.
        examples: own data, instead of the file that the request names.

    Returns:
        The content of ``run.json``.
    """
    began = time.time()
    compute.seconds.clear()
    state = run.state
    resumed = resume and run.is_interrupted
    torch.manual_seed(request.search.seed)
    directory = resolve_model(request.model)
    parameters = parameters_of(directory)
    settings = resolve_request(request, parameters)
    progress.say(opening_of(settings.request, resumed))
    dense = described(request.model, directory)  # now: its files may change during the run

    def load() -> FamilyAdapter:
        return load_adapter(directory, compute.device, options.device_map, request.stream)

    adapter = load()
    modes_of(adapter, request.search.modes)
    table = _table(request, adapter)
    data, split = data_of(request, adapter, compute, examples, progress)
    if resumed and split is not None:
        check_same_data(run, split)
    # Only now: if the model, modes or data are refused, there is nothing to resume.
    compute.accelerator.wait_for_everyone()  # until every process has read the state
    if compute.is_main and not resumed:
        fingerprint = None if split is None else split.fingerprint
        run.begin({**as_json(request), DENSE: dense, FINGERPRINT: fingerprint})
    compute.accelerator.wait_for_everyone()  # until the state of an earlier run is replaced
    estimate = estimate_words(
        training_seconds(settings.request, adapter, data, compute, parameters)
    )
    if estimate:
        progress.say(estimate)
    # The search pops the model from the list and holds its only reference: recovery needs the memory.
    loaded = [adapter]
    del adapter
    prepared = time.time()
    context = RunContext(compute, load, data, progress, table)
    folder = state
    verdicts: list[dict[str, Any]] = []
    try:
        if request.race:
            settings, folder, verdicts = run_race(context, settings, state, loaded)
        slim, outcome, distiller = search_and_cut(context, settings, folder, loaded)
    except (CompExportError, ModuleNotFoundError):  # of an extra, such as LoRA's
        if compute.is_main:
            run.forget_refused()
        raise
    search_ended, search_seconds = time.time(), dict(compute.seconds)
    settings = settings.with_steps_left_by(outcome)
    distiller = distiller or settings.distiller(compute, load)
    recover_slim(context, settings, slim, outcome.plan, folder, distiller)
    metric, _ = validate(context, slim, outcome.plan)
    record = record_of(request, options, run, dense, outcome, metric, settings, slim.task)
    if verdicts:
        record["race"] = verdicts
        record["steps"]["search"] += (len(verdicts) - 1) * (outcome.steps + request.race)
    record |= times_of(outcome.plan, table)
    record["processes"] = compute.processes
    record["resumed"] = resumed
    ended = time.time()
    record["seconds"] = {"search": search_ended - began, "recovery": ended - search_ended}
    record["seconds"] |= compute.seconds
    record["times_fine_tuning"] = {
        "search": times_fine_tuning(search_ended - prepared, search_seconds),
        "whole": times_fine_tuning(ended - prepared, compute.seconds),
    }
    if compute.is_main:
        write_run(run, slim, outcome.plan, record, folder, split)
    compute.accelerator.wait_for_everyone()
    return record


def _table(request: PruneRequest, adapter: FamilyAdapter) -> LatencyTable | None:
    """Load the latency table of the request; ``None`` if it has none.

    Raises:
        CompExportError: the table is missing, damaged, or of another model.
    """
    if request.table is None:
        return None
    table = LatencyTable.load(Path(request.table.path))
    blocks = [dense_block(block) for block in adapter.blocks]
    table.check_fits(adapter.name, blocks, request.table.path)
    return table
