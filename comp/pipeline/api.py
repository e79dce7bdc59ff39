"""``comp.prune``: a pruning run from Python, with the options of ``comp-export prune``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comp.data.example import AnyExample
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions
from comp.pipeline.prune import prune_model
from comp.pipeline.run_folder import check_free, run_of
from comp.runs import RunDirectory
from comp.utils.compute import Compute
from comp.utils.device import Device
from comp.utils.locks import is_first_process
from comp.utils.progress import Callback


def prune(
    model: str | Path = "tiny-llava",
    rate: float = 0.62,
    *,
    data: str | Path | Sequence[AnyExample] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    resume: bool = False,
    device: Device = "auto",
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **options: Any,
) -> RunDirectory:
    """Prune a model: search, cut, recover, and write a run directory.

    The same options and seed give the same plan as ``comp-export prune``.

    Args:
        model: embedded model, directory or hub id.
        rate: share of the model's FLOPs to remove, in (0, 1); with ``cost="latency"`` of its time.
        data: a file (see docs/how-to/your-own-model.md), or any sequence of ``comp.Example`` or
            ``comp.PairExample``. It is split by picture, and a tenth is left for ``serve.evaluate``
            (``comp.data.split``). ``None``: EmojiScenes.
        out: run directory; by default ``runs/MODEL-RATE``.
        force: replace an existing run.
        resume: continue an interrupted run with the same arguments.
        device: ``auto``, ``cpu`` or ``cuda``.
        callbacks: follow the run.
        progress: show bars on stderr.
        options: further fields of ``comp.PruneOptions``, such as ``method``, ``modes`` and ``seed``.

    Returns:
        The run: ``path``, ``load_plan()``, ``read_record()``.

    Raises:
        CompExportError: an unknown option or a value out of range, options that do not fit the model, data
            that cannot be read, or a directory that is in use or holds another run.
    """
    examples = None if data is None or isinstance(data, str | Path) else data
    if examples is None and data is not None:
        options["data"] = Path(str(data))
    if examples is not None and (options.get("images") or options.get("follow_links")):
        raise CompExportError("images and follow_links are for data in a file: leave them out")
    chosen = PruneOptions.of(model=str(model), rate=rate, **options)
    place = None if out is None else Path(out)
    run = run_of(place, chosen.model, chosen.rate, chosen.seed)
    if force and resume:
        raise CompExportError("force starts again and resume continues: give one of them")
    if not is_first_process():
        return _pruned(chosen, run, device, resume, progress, examples, callbacks)
    with run.locked("comp.prune"):
        check_free(run, force, resume)
        return _pruned(chosen, run, device, resume, progress, examples, callbacks)


def _pruned(
    chosen: PruneOptions,
    run: RunDirectory,
    device: Device,
    resume: bool,
    progress: bool,
    examples: Sequence[AnyExample] | None,
    callbacks: Sequence[Callback],
) -> RunDirectory:
    compute = Compute(device, chosen.dtype)
    prune_model(chosen, run, compute, not progress, resume, examples, callbacks)
    return run
