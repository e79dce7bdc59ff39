"""Artifacts of the standard flavour in OpenVINO, as a link of ``verify``."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from export.cache import PAST, PRESENT
from export.manifest import Artifact, Precision
from export.openvino_graph import INSTALL, NO_BFLOAT16, OpenVinoGraph, computes_bfloat16
from export.openvino_pages import PagedDecoder
from export.parity import Runner
from export.proof import Form, Skipped


class OpenVinoOutputs:
    """A graph in OpenVINO that takes and gives numpy arrays by name (see ``NumpyGraph``).

    Outputs in bfloat16, which NumPy has not, stay as they are for a later run.
    """

    def __init__(self, path: Path, precision: Precision, threads: int | None = None) -> None:
        """Arguments and errors as ``OpenVinoGraph``."""
        self._graph = OpenVinoGraph(path, precision, threads)
        self._kept = sorted(self._graph.bfloat16)
        self._numbers = [name for name in self._graph.outputs if name not in self._graph.bfloat16]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        """Every output by its name."""
        arrays, tensors = self._graph.run(feeds, self._numbers, self._kept)
        return dict(zip([*self._numbers, *self._kept], [*arrays, *tensors], strict=True))


class PagedOutputs:
    """A decoder in OpenVINO: numpy arrays by name, and caches, written in place, as they were fed."""

    def __init__(self, path: Path, precision: Precision, threads: int | None = None) -> None:
        """Arguments and errors as ``PagedDecoder``."""
        self._graph = PagedDecoder(path, precision, threads)

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Every output by its name."""
        arrays, _ = self._graph.run(feeds, self._graph.outputs)
        caches = {
            name.replace(PAST, PRESENT): cache
            for name, cache in feeds.items()
            if name.startswith(PAST)
        }
        return dict(zip(self._graph.outputs, arrays, strict=True)) | caches


def openvino_form(artifact: Artifact, load: Callable[[], Runner]) -> Form | Skipped:
    """An artifact of the standard flavour in OpenVINO, where it and this CPU can."""
    manifest = artifact.manifest
    name = f"OpenVINO ({artifact.path.name})"
    if find_spec("openvino") is None:
        return Skipped(name, f"openvino is not installed: {INSTALL}")
    if manifest.precision == "bfloat16" and not computes_bfloat16():
        return Skipped(name, f"it is bfloat16, {NO_BFLOAT16}")
    return Form(name, artifact.path, manifest.dense, manifest.precision, load)
