"""``comp.prune``: a pruning run from Python, with the options of ``comp-export prune``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comp.data.example import AnyExample, check_sequence
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions
from comp.pipeline.prune import prune_model
from comp.pipeline.run_folder import check_free, run_of
from comp.runs import RunDirectory
from comp.utils.arguments import check_choices, path_of
from comp.utils.compute import Compute
from comp.utils.device import DEVICES, Device
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
    check_choices(device=(device, DEVICES))
    _check_callbacks(callbacks)
    examples = None if data is None or isinstance(data, str | Path) else data
    if examples is None and data is not None:
        options["data"] = Path(str(data))
    if examples is not None:
        check_sequence(examples)
    if examples is not None and (options.get("images") or options.get("follow_links")):
        raise CompExportError("images and follow_links are for data in a file: leave them out")
    chosen = PruneOptions.of(model=_model_of(model), rate=rate, **options)
    place = None if out is None else path_of("out", out)
    run = run_of(place, chosen.model, chosen.rate, chosen.seed)
    if force and resume:
        raise CompExportError("force starts again and resume continues: give one of them")
    if not is_first_process():
        return _pruned(chosen, run, device, resume, progress, examples, callbacks)
    with run.locked("comp.prune"):
        check_free(run, force, resume)
        return _pruned(chosen, run, device, resume, progress, examples, callbacks)


def _model_of(model: object) -> str:
    """Return the text of a model; a name is no path, so it stays as it is."""
    if not isinstance(model, str | Path):
        raise CompExportError(
            f"model is a {type(model).__name__}: give the name of an embedded model, a directory or a hub id"
        )
    return str(model)


def _check_callbacks(callbacks: object) -> None:
    """Refuse callbacks that are not objects of ``Callback`` in a sequence.

    Raises:
        CompExportError: names the first that is not.
    """
    if not isinstance(callbacks, Sequence):
        raise CompExportError(
            f"callbacks is a {type(callbacks).__name__}: give a list of comp.Callback objects"
        )
    for callback in callbacks:
        if not isinstance(callback, Callback):
            what = (
                f"the class {callback.__name__}" if isinstance(callback, type) else repr(callback)
            )
            raise CompExportError(
                f"callbacks has {what}: give objects of a class derived from comp.Callback"
            )


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
