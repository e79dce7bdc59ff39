"""``comp-export prune``: a pruning method, from start to end, on one model."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from comp.checkpoints.locate import EMBEDDED
from comp.commands.faithful import check_faithful
from comp.commands.options import CommonOptions, common_options
from comp.commands.prune_options import prune_options
from comp.errors import CompExportError
from comp.pipeline.defaults import (
    ALIGN_LARGE,
    ALIGN_SMALL,
    LARGE_WIDTH,
    _of_model,
    learning_rates,
    tower_rate,
)
from comp.registry import METHODS, Teaching, method_called, mode_names
from comp.runs import RunDirectory, hold
from comp.utils.console import print_json, print_table, say
from comp.utils.device import torch_device
from comp.utils.locks import is_first_process

if TYPE_CHECKING:
    from comp.plan import RateOf

RUNS = Path("runs")
COST_EXAMPLES = 64  # of the loss


@click.command()
@prune_options
@common_options
def command(
    model: str,
    rate: float,
    method: str,
    faithful: bool,
    modes: str | None,
    out: Path | None,
    force: bool,
    resume: bool,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    stages: int,
    steps_per_stage: int,
    recover: str,
    recover_steps: int,
    batch_size: int,
    lr: float | None,
    recover_lr: float | None,
    tower_lr: float | None,
    lora_rank: int,
    calibration: int,
    validation: int,
    align: int | None,
    dtype: str,
    device_map: str | None,
    stream: bool | None,
    distill: str | None,
    distill_weight: float | None,
    distill_temperature: float,
    exploration: float,
    temperature: float,
    history: float,
    cost: "RateOf",
    latency_table: Path | None,
    cost_metric: str,
    cost_examples: int | None,
    race: int | None,
    no_reconstruction: bool,
    train_stages: bool | None,
    no_cip: bool,
    no_cit: bool,
    no_cas: bool,
    no_exploration: bool,
    no_history: bool,
    undo: bool,
    options: CommonOptions,
) -> None:
    """Prune a model: search, cut, recover, and write a run directory.

    An interrupted run goes on with --resume and ends with the same plan; at most one stage is lost.
    """
    if not 0 < rate < 1:
        raise CompExportError(
            f"--rate {rate:g} is outside (0, 1): it is the share of FLOPs (or time) to remove, such as "
            "0.62"
        )
    if faithful:
        check_faithful(click.get_current_context().params)
    if method != "comp" and (cost == "latency" or latency_table is not None):
        option = "--cost latency" if cost == "latency" else "--latency-table"
        raise CompExportError(
            f"{option} with --method {method}: only comp prunes by time; leave one of them out"
        )
    if race and (method != "comp" or recover == "none"):
        why = f"--method {method}" if method != "comp" else "--recover none"
        raise CompExportError(
            f"--race {race} with {why}: searches of comp race, and recovery decides; leave one of them out"
        )
    if stream and method_called(method).differentiates:
        forward = ", ".join(
            m.name for m in METHODS if "llava" in m.families and not m.differentiates
        )
        raise CompExportError(
            f"--stream with --method {method}, which needs gradients of the whole model: choose from "
            f"{forward}"
        )
    if stream and device_map is not None:
        raise CompExportError(
            f"--stream with --device-map {device_map}: a model is read from its files or spread over "
            "GPUs; leave one of them out"
        )
    run = run_of(out, model, rate, options.seed)
    if force and resume:
        raise CompExportError("--force starts again and --resume goes on: give one of them")
    if is_first_process():  # of several that prune together one speaks for all
        hold(run, "prune")
        _prepare(run, force, resume)
    from comp.checkpoints.locate import resolve_model
    from comp.latency.files import table_for
    from comp.pipeline.prune import run_pruning
    from comp.pipeline.request import PruneRequest, check_resumable
    from comp.search.job import MethodOptions
    from comp.search.stage import ImportanceOptions
    from comp.search.strategy import StrategyOptions
    from comp.training.data import DataSizes
    from comp.training.distillation import DistillOptions
    from comp.training.recovery import RecoverOptions
    from comp.training.trainer import StepOptions
    from comp.utils.compute import Compute

    directory = resolve_model(model)
    family, defaults, width, teaching = _of_model(model)
    asked = defaults if modes is None else mode_names(modes)
    pruned_modes = method_called(method).modes_among(asked, family)
    large = width >= LARGE_WIDTH
    table = table_for(model, family.name, cost, latency_table)
    align = align or (ALIGN_LARGE if large else ALIGN_SMALL)
    if stream is None:
        from comp.families.streamed import is_large

        other = recover != "none" or device_map is not None or method_called(method).differentiates
        other = other or family.name != "llava" or torch_device(options.device) != "cpu"
        stream = not other and is_large(directory)
    adapted = recover == "lora" or (recover != "full" and family.name == "llava")
    untaught = recover == "none" or (large and not adapted)  # a teacher of its own fills memory
    if distill is not None or untaught:
        teaching = Teaching(distill or "none", tower=teaching.tower)  # type: ignore[arg-type]
    rates = learning_rates(lr, recover_lr, large, adapted, teaching.recover_lr)
    if cost_metric == "loss" and cost_examples is None:
        cost_examples = min(COST_EXAMPLES, validation)
    tower = tower_rate(tower_lr, family, teaching)
    training = StepOptions(batch_size=batch_size, learning_rate=rates[0], tower=tower)
    search = MethodOptions(
        rate=rate,
        modes=pruned_modes,
        stages=stages,
        steps_per_stage=steps_per_stage,
        align=align,
        seed=options.seed,
        rate_of=cost,
        reconstruct=method == "comp" and not no_reconstruction,
        train_stages=train_stages,
        importance=ImportanceOptions(not no_cip, not no_cit, align),
        strategy=StrategyOptions(
            exploration=0.0 if no_exploration else exploration,
            temperature=temperature,
            history=0.0 if no_history else history,
            cost_aware=not no_cas,
            cost_metric=cost_metric,  # type: ignore[arg-type]
            undo=undo,
        ),
        training=training,
    )
    races = method == "comp" and recover != "none" and modes is None
    request = PruneRequest(
        model=model,
        method=method,
        search=search,
        recover=RecoverOptions(
            steps=recover_steps,
            seed=options.seed,
            training=replace(training, learning_rate=rates[1], warmup_steps=10),
        ),
        sizes=DataSizes(
            calibration, validation, min(batch_size, calibration), cost_examples, stream
        ),
        recovery=recover,  # type: ignore[arg-type]
        lora_rank=lora_rank,
        data=None if data is None else str(data),
        images=None if images is None else str(images),
        follow_links=follow_links,
        faithful=faithful,
        distill=DistillOptions(
            teaching.distill, distill_weight or teaching.weight, distill_temperature
        ),
        table=table,
        race=race if race is not None else family.race if races else 0,
        race_if_room=race is None,
        stream=stream,
    )
    if resume:
        check_resumable(run, request, directory)
    compute = Compute(options.device, dtype)
    record = run_pruning(request, run, compute, device_map, options.json, resume)
    if not compute.is_main:
        return
    if options.json:
        keys = ["rate", "rate_asked", "rate_of", "macs", "metric", "seconds", "times_fine_tuning"]
        keys += ["milliseconds"] if "milliseconds" in record else []
        print_json({"run": str(run.path), **{key: record[key] for key in keys}})
        return
    metric = record["metric"]
    rows = [
        ("FLOPs (MACs)", f"{record['macs']['dense']:,}", f"{record['macs']['compressed']:,}"),
        (metric["name"], f"{metric['dense']:.1%}", f"{metric['compressed']:.1%}"),
    ]
    if "milliseconds" in record:
        times = record["milliseconds"]
        dense, left = f"{times['dense']:.2f} ms", f"{times['compressed']:.2f} ms"
        rows.insert(1, ("predicted time to first token", dense, left))
    of = {"flops": "FLOPs", "latency": "predicted time"}[record["rate_of"]]
    title = f"{run.path}: rate {record['rate']:.3f} of {of}"
    print_table(title, ("", "dense", "compressed"), rows)
    if "onnx" in family.exports:
        say("next: comp-export onnx, then verify, eval and bench")


def run_of(out: Path | None, model: str, rate: float, seed: int) -> RunDirectory:
    """Where a run is written: ``out``, or a place under ``runs/`` that names model, rate and seed."""
    if out is not None:
        return RunDirectory(out.resolve() if out.is_symlink() else out)
    name = model if model in EMBEDDED else os.path.abspath(model)  # noqa: PTH100  # links keep their names
    return RunDirectory(RUNS / f"{Path(name).name}-{rate:g}{f'-seed{seed}' if seed else ''}")


def _prepare(run: RunDirectory, force: bool, resume: bool) -> None:
    """Refuse to overwrite; what --force replaces stays until the new run can take its place."""
    run.check_latest()
    if resume or run.is_empty:
        return
    if force:
        if not (run.record.exists() or run.is_interrupted):
            raise CompExportError(f"{run.path} is no run directory: --force will not replace it")
    elif run.is_interrupted:
        raise CompExportError(
            f"{run.path} holds an interrupted run: go on with --resume, or start again with --force"
        )
    else:
        raise CompExportError(f"{run.path} exists: replace it with --force, or choose --out")
