"""``export.onnx`` and ``export.verify``: export a run and prove it, from Python.

Both compare transformers with the engines of ``serve``. That package imports this one, so its part is loaded
by name.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from comp.data.embedded import embedded_examples
from comp.data.example import AnyExample
from comp.data.of_run import data_of_run
from comp.errors import CompExportError
from comp.registry.code import resolve
from comp.runs import RunDirectory, run_at
from comp.utils.arguments import check_choices, check_counts, path_of
from comp.utils.console import say
from comp.utils.device import Device, torch_device
from export.artifact.manifest import Flavour, Precision, Rounding
from export.proof.chain import VerifyRequest, task_of, verify_run
from export.proof.first_link.request import EXAMPLES as EXAMPLES_READ
from export.run_exporter import EXAMPLES, Exported, ExportRequest, Started, export_run

CHECK = "serve.first_link.export_check:check_of_export"
FIRST_LINKS = "serve.first_link.links"
Data = str | Path | Sequence[AnyExample]


def onnx(
    run: RunDirectory | str | Path,
    *,
    precision: Precision = "float32",
    flavour: Flavour = "onnxruntime",
    rounding: Rounding = "nearest",
    examples: int = EXAMPLES,
    data: Data | None = None,
    images: str | Path | None = None,
    follow_links: bool = False,
    dense: bool = True,
    model: str | None = None,
    force: bool = False,
    resume: bool = False,
    check: bool = True,
    started: Started = lambda name, total: lambda: None,
) -> Exported:
    """Export a run to ONNX: its slim checkpoint and, as the baseline, the dense model.

    Args:
        run: a finished run, or its directory.
        precision: precision of weights, computation and caches.
        flavour: ``onnxruntime``: its fused operators; ``standard``: ONNX operators only.
        rounding: rounding of int4: ``nearest``, or ``calibrated`` on examples.
        examples: number of examples to calibrate on.
        data: your own examples to calibrate on, or to measure activations on before float16: a file, or a
            sequence of examples.
        images: the folder of the images that a file names.
        follow_links: also read images through links that leave that folder.
        dense: also export the dense model.
        model: the dense model, if it is no longer where the run names it.
        force: replace existing artifacts.
        resume: keep complete artifacts, and write the missing ones.
        check: compare each artifact with transformers before it is moved into place.
        started: called with a step's name and length; returns the callback for its progress.

    Returns:
        The directories and manifests of the artifacts, and warnings.

    Raises:
        CompExportError: as for ``export.run_exporter.export_run``.
    """
    check_choices(
        precision=(precision, get_args(Precision)),
        flavour=(flavour, get_args(Flavour)),
        rounding=(rounding, get_args(Rounding)),
    )
    check_counts(examples=examples)
    directory = run_at(run)
    request = ExportRequest(
        flavour=flavour,
        precision=precision,
        rounding=rounding,
        examples=examples,
        data=Path(data) if isinstance(data, str) else data,
        images=None if images is None else path_of("images", images),
        follow_links=follow_links,
        dense=dense,
        model=model,
        force=force,
        resume=resume,
    )
    with directory.locked("onnx"):
        return export_run(directory, request, resolve(CHECK) if check else None, started)


def verify(
    run: RunDirectory | str | Path,
    *,
    questions: int = 200,
    data: Data | None = None,
    images: str | Path | None = None,
    follow_links: bool = False,
    max_new_tokens: int = 16,
    answer_seconds: float | None = None,
    model: str | None = None,
    device: Device = "auto",
    started: Started = lambda name, total: lambda: None,
) -> dict[str, Any]:
    """Verify that transformers and all artifacts of a run give the same answers.

    Args:
        run: an exported run, or its directory.
        questions: number of examples that each variant answers.
        data: your own examples: a file, or a sequence of examples; by default the test part of the data that
            the run was pruned on, or EmojiScenes.
        images: the folder of the images that a file names.
        follow_links: also read images through links that leave that folder.
        max_new_tokens: length of the greedy answers to compare.
        answer_seconds: time after which transformers only reads further requests, without answering.
        model: the dense model, if it is no longer where the run names it.
        device: device of torch; ``auto`` is the CPU, as GPUs may round matrix products.
        started: called with a step's name and length; returns the callback for its progress.

    Returns:
        The content of ``reports/verify.json``; its ``ok`` says whether every link holds.

    Raises:
        CompExportError: as for ``export.proof.chain.verify_run``, or data that cannot be read.
    """
    check_counts(questions=questions, max_new_tokens=max_new_tokens)
    directory = run_at(run)
    place = torch_device("cpu" if device == "auto" else device)
    with directory.locked("verify"):
        folder = None if images is None else path_of("images", images)
        examples, source = _examples(directory, data, folder, follow_links, questions)
        request = VerifyRequest(examples, source, questions, max_new_tokens)
        serve: Any = resolve(FIRST_LINKS)
        count = min(EXAMPLES_READ, questions)
        first = serve.FromUsers(examples, count, max_new_tokens, answer_seconds, model=model)
        links = partial(first.of_run, place, started)
        return verify_run(directory, request, links, place, started, model)


def _examples(
    run: RunDirectory, data: Data | None, images: Path | None, follow_links: bool, count: int
) -> tuple[Any, str]:
    """Return examples of a run's task, and the name of their source."""
    task: Any = task_of(run)
    given = Path(data) if isinstance(data, str) else data
    try:
        own = data_of_run(run, task, given, images, follow_links)
    except CompExportError as error:
        if given is not None:
            raise
        # A run far from its data: what is proved holds on any examples.
        say(f"{error}; verifying on EmojiScenes")
        own = None
    if own is not None:
        own.tell()
        return own.examples, own.name
    return embedded_examples(task, "test", count), "EmojiScenes test"
