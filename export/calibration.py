"""Round weights to 4 bits by calibration: NNCF's scale estimation on examples.

Rounding to the nearest looks at a matrix alone. Scale estimation also looks at its inputs, and chooses the
scales and integers that change the layer's *outputs* least. The graphs run in float32 on examples, their
inputs are recorded, NNCF rounds their matrices, and the integers are copied by tensor name into the
exported flavour.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from comp.checkpoints.tying import LM_HEAD
from comp.data.embedded import embedded_examples
from comp.data.example import CheckedExamples
from comp.data.of_run import given_data
from comp.errors import CompExportError
from comp.runs import RunDirectory
from comp.utils.install import install_hint
from comp.utils.machine import memory_mb
from export.artifact.load import load_artifact
from export.artifact.weight_groups import GROUPS, group_of
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.graph.integer_linear import WHOLE_BYTES
from export.graph.integer_rounding import Quantised, nibbles
from export.onnxruntime.graph import OrtGraph
from export.proof.families import Verification
from export.proof.interface import Examples, Questions

NEW_TOKENS = 4  # per answer: decode steps are calibrated on too, but prompts dominate
FACTOR = 2  # memory for rounding, as a multiple of the float32 graph; measured on 200 M weights
QUANTISED, SCALE = "_quantized", "_scale"  # suffixes of tensor names in NNCF's graphs
FLOAT32 = Target("standard", "float32")

Integers = dict[str, Quantised]
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Calibration:
    """Examples to calibrate on: the first ``count`` of a data set.

    Attributes:
        model: where the dense model is now, if it was moved after the run.
    """

    examples: Examples
    count: int
    model: str | None = None


def examples_for(
    run: RunDirectory,
    count: int,
    data: Path | Examples | None,
    images: Path | None,
    follow_links: bool = False,
) -> Examples:
    """Return a run's calibration data: of ``data``, otherwise of EmojiScenes.

    Of a file with splits, and of the data that the run was pruned on, it is what trains.

    ``data`` may also be the examples themselves.

    Raises:
        CompExportError: the data cannot be read or is of another task, or the plan names no task.
    """
    task: Any = run.load_plan().task
    if task is None:
        raise CompExportError(
            f"{run.path}: its plan names no task, because an earlier release wrote it: prune again, or use "
            "--rounding nearest"
        )
    if data is None:
        return embedded_examples(task, "train", count)
    if not isinstance(data, Path):
        given: Any = data
        return CheckedExamples.of(task, given)
    return given_data(run, task, data, images, follow_links, "train").examples


def calibrated(
    run: RunDirectory,
    checkpoint: Path,
    origin: Origin,
    request: Calibration,
    started: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
) -> Integers:
    """Round the 4-bit matrices of a checkpoint by calibration; return them by tensor name.

    Args:
        run: the run whose slim or dense model the checkpoint is.
        checkpoint, origin: as in ``export.exporter.export_artifact``.
        request: the examples.
        started: called with each step's name and length; returns the callback for its progress.

    Raises:
        CompExportError: NNCF or ONNX Runtime is missing, or memory is too small.
    """
    nncf = _nncf()
    with TemporaryDirectory(prefix="comp-export-calibrate-") as temporary:
        directory = Path(temporary) / "onnx"
        export_artifact(checkpoint, directory, origin, FLOAT32)
        _check_memory(directory)
        feeds = _recorded(run, directory, request, started)
        integers: Integers = {}
        for name, recorded in feeds.items():
            if name in WHOLE_BYTES or not recorded:
                continue
            done = started(f"rounding {name}", 1)
            for tensor, quantised in _rounded(nncf, directory / f"{name}.onnx", recorded):
                integers.setdefault(
                    tensor, quantised
                )  # a tensor shared by two graphs is rounded once
            done()
    return integers


def _recorded(
    run: RunDirectory,
    directory: Path,
    request: Calibration,
    started: Callable[[str, int], Callable[[], None]],
) -> dict[str, list[Feeds]]:
    """Record the inputs of each graph of an artifact while it answers the examples."""
    artifact = load_artifact(directory, check_hashes=False)
    family = Verification.of(artifact)
    reference = family.reference(run, artifact, "cpu", request.model)
    feeds: dict[str, list[Feeds]] = {}

    class Recording(OrtGraph):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self._heard = feeds.setdefault(path.stem, [])

        def run(self, read: Feeds) -> Feeds:
            self._heard.append(read)
            return super().run(read)

    runner = family.on_graphs(artifact, Recording)
    questions = Questions(request.examples, request.count, reference.prepare)
    done = started("examples in float32", len(questions))
    for question in questions:
        runner.ask(question, NEW_TOKENS)
        done()
    return feeds


def _rounded(nncf: Any, path: Path, feeds: list[Feeds]) -> Iterator[tuple[str, Quantised]]:
    """Yield the matrices of a graph that NNCF rounded to 4 bits in group sizes that our graphs support."""
    advanced = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST,
        min_adjusted_group_size=GROUPS[-1],
        backend_params={"external_data_dir": str(path.parent.absolute())},
    )
    with _quiet():
        compressed = nncf.compress_weights(
            onnx.load(
                path, load_external_data=False
            ),  # one of 2 GiB and more cannot be loaded whole
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=GROUPS[0],
            ratio=1.0,
            dataset=nncf.Dataset(feeds),
            subset_size=len(feeds),
            scale_estimation=True,
            advanced_parameters=advanced,
        )
    tensors = {tensor.name: tensor for tensor in compressed.graph.initializer}
    for name, tensor in tensors.items():
        weight = name.removesuffix(QUANTISED)
        if name == weight or weight == LM_HEAD:
            continue
        packed = onnx.numpy_helper.to_array(tensor)
        if packed.ndim != len(("out", "groups", "bytes")) or packed.dtype != np.uint8:
            continue  # in 8 bits: no group divides the width
        scales = onnx.numpy_helper.to_array(tensors[f"{weight}{SCALE}"])
        values = nibbles(packed)
        rows, groups, size = values.shape
        if group_of(groups * size) == size:
            yield weight, Quantised(values.reshape(rows, -1), scales.astype(np.float32))


def _nncf() -> Any:
    """Import NNCF with its telemetry switched off.

    Raises:
        CompExportError: it is not installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # its switch for telemetry, read when it is imported
    try:
        with _quiet():
            import nncf
    except ImportError as error:
        raise CompExportError(
            f"nncf is not installed: {install_hint('calibrate')}, or take --rounding nearest"
        ) from error
    return nncf


def _check_memory(directory: Path) -> None:
    """Check that a whole graph fits into memory in float32, with room for rounding.

    Raises:
        CompExportError: the machine has less memory.
    """
    largest = max(path.stat().st_size for path in directory.glob("*.onnx.data"))
    needed, available = FACTOR * largest, 2**20 * (memory_mb() or sys.maxsize)
    if needed > available:
        raise CompExportError(
            f"--rounding calibrated takes about {needed / 2**30:.0f} GiB of memory for this model, and the "
            f"machine has {available / 2**30:.0f}: take --rounding nearest, or calibrate on a larger machine"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence NNCF's tables and progress bars; warnings stay."""
    log = logging.getLogger("nncf")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        log.setLevel(before)
