"""Artifacts of the standard flavour in OpenVINO, as variants of ``verify``."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from comp.utils.install import install_hint
from export.artifact.caches import LOGITS, PAST, PRESENT
from export.artifact.manifest import Artifact, Precision, computed_in
from export.openvino.graph import NO_BFLOAT16, OpenVinoGraph, computes_bfloat16
from export.openvino.paged_decoder import PagedDecoder
from export.proof.compare import Runner
from export.proof.interface import RuntimeVariant, Skipped


class OpenVinoOutputs:
    """A graph in OpenVINO with numpy arrays by name (see ``NumpyGraph``).

    Outputs in bfloat16, which NumPy lacks, stay tensors for a later run.
    """

    def __init__(
        self, path: Path, precision: Precision, threads: int | None = None, bfloat16: bool = False
    ) -> None:
        """Arguments and errors as for ``OpenVinoGraph``."""
        self._graph = OpenVinoGraph(path, precision, threads, bfloat16)
        self._kept = sorted(self._graph.bfloat16)
        self._numbers = [name for name in self._graph.outputs if name not in self._graph.bfloat16]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        """Every output by its name."""
        arrays, tensors = self._graph.run(feeds, self._numbers, self._kept)
        return dict(zip([*self._numbers, *self._kept], [*arrays, *tensors], strict=True))


class PagedOutputs:
    """A decoder in OpenVINO: numpy arrays by name, and caches that are written in place."""

    def __init__(
        self, path: Path, precision: Precision, threads: int | None = None, bfloat16: bool = False
    ) -> None:
        """Arguments and errors as for ``PagedDecoder``."""
        self._graph = PagedDecoder(path, precision, threads, bfloat16)

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Every output by its name."""
        caches = {name: cache for name, cache in feeds.items() if name.startswith(PAST)}
        if feeds["inputs_embeds"].shape[1] == 1:
            numbers = self._step(
                {name: feeds[name] for name in feeds.keys() - caches.keys()}, caches
            )
        else:
            arrays, _ = self._graph.run(feeds, self._graph.outputs)
            numbers = dict(zip(self._graph.outputs, arrays, strict=True))
        return numbers | {name.replace(PAST, PRESENT): cache for name, cache in caches.items()}

    def _step(self, feeds: dict[str, Any], caches: dict[str, Any]) -> dict[str, Any]:
        """Run a step as ``serve`` does, with the step graph, which keeps its token at every drop."""
        bound = self._graph.begin(caches)
        logits = self._graph.step(bound, feeds)
        self._graph.end(bound)
        only = np.zeros((len(logits), 1), np.int64)
        return dict.fromkeys(self._graph.outputs, only) | {LOGITS: logits}


def openvino_variants(
    artifact: Artifact, load: Callable[..., Runner]
) -> Iterator[RuntimeVariant | Skipped]:
    """Yield an artifact of the standard flavour in OpenVINO, if OpenVINO and this CPU support it.

    Args:
        artifact: the opened artifact; with integer weights also computed in bfloat16.
        load: takes ``bfloat16``: whether to compute in it, for any precision of the artifact.
    """
    manifest = artifact.manifest
    name = f"OpenVINO ({artifact.path.name})"
    if find_spec("openvino") is None:
        yield Skipped(name, f"openvino is not installed: {install_hint('openvino')}")
        return
    if manifest.precision == "bfloat16" and not computes_bfloat16():
        yield Skipped(name, f"it is bfloat16, {NO_BFLOAT16}")
        return
    yield RuntimeVariant.of(name, artifact, partial(load, bfloat16=False))
    if computed_in(manifest.precision) == manifest.precision:
        return
    name = f"OpenVINO, computed in bfloat16 ({artifact.path.name})"
    if computes_bfloat16():
        yield RuntimeVariant.of(name, artifact, partial(load, bfloat16=True), bfloat16=True)
    else:
        yield Skipped(name, f"in bfloat16, {NO_BFLOAT16}")
