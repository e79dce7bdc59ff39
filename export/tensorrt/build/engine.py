"""Build one engine, with progress, Ctrl-C and readable errors."""

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

from comp.errors import CompExportError
from comp.utils.files import writing
from export.tensorrt.attention_report import BlockReport, inspect_network
from export.tensorrt.build.network import (
    add_profile,
    input_dimensions,
    parse,
    profile_shapes,
    read_graph,
)
from export.tensorrt.build.profiles import Dims, EngineGraph
from export.tensorrt.library import TensorRT

Weights = Literal["embedded", "streamed", "stripped"]
Progress = Callable[[str], None]  # called with TensorRT's current phase

POLL_SECONDS = 0.2  # how long Ctrl-C may go unnoticed
OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "bad_alloc",
    "insufficient memory",
    "myelin_tensor.h",
)


@dataclass(frozen=True)
class BuildOptions:
    """Options of building engines.

    Attributes:
        capabilities: compute capabilities to build for.
        weights: ``embedded`` in the engine; ``streamed``: embedded, and streamed to the GPU as its
            memory allows; ``stripped``: left out and taken from the ONNX artifact when loaded.
        timing_cache: file with measured kernels, read and written (``tensorrt`` only).
    """

    capabilities: tuple[str, ...]
    weights: Weights = "embedded"
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Built:
    """A serialised engine, and reports on its contents."""

    data: Any  # a buffer: TensorRT's host memory
    profiles: dict[str, dict[str, tuple[Dims, Dims, Dims]]]
    blocks: tuple[BlockReport, ...]


def build_engine(
    tensorrt: TensorRT,
    artifact: Path,
    graph: EngineGraph,
    options: BuildOptions,
    progress: Progress = lambda phase: None,
) -> Built:
    """Build the engine of one graph.

    Args:
        tensorrt: the module that builds.
        artifact: directory with the graphs.
        graph: the graph, and its profiles.
        options: options of building.
        progress: called with each phase.

    Raises:
        CompExportError: the graph cannot be parsed or built, or memory ran out.
    """
    return _interruptibly(
        lambda cancelled: _build(tensorrt, artifact, graph, options, progress, cancelled)
    )


def _interruptibly(work: Callable[[Event], Built]) -> Built:
    """Run in a separate thread, so that Ctrl-C works; TensorRT then stops at its next step.

    It ignores exceptions of its callbacks, so none of them may run in the thread where Ctrl-C is raised.
    """
    cancelled = Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, cancelled)
        try:
            while not wait([future], POLL_SECONDS).done:
                pass
            return future.result()
        finally:
            cancelled.set()
            _let_go(future.exception())


def _let_go(error: BaseException | None) -> None:
    """Free the memory of a failed build at once.

    A traceback is garbage that Python collects at any time, also in a callback of another build. There the
    end of a builder waits for a lock that its own thread holds, for ever.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _build(
    tensorrt: TensorRT,
    artifact: Path,
    graph: EngineGraph,
    options: BuildOptions,
    progress: Progress,
    cancelled: Event,
) -> Built:
    path = artifact / graph.graph
    model = read_graph(path, graph.fixed)
    dimensions = input_dimensions(model)
    log = _logger(tensorrt)
    builder = tensorrt.module.Builder(log)
    config = builder.create_builder_config()
    _configure(tensorrt, config, options)
    config.progress_monitor = _monitor(tensorrt, progress, cancelled)
    network = parse(tensorrt, builder, model, path, log)
    for profile in graph.profiles:
        add_profile(builder, config, profile, dimensions)
    cache = _TimingCache.load(tensorrt, config, options.timing_cache)
    data = _run(builder, network, config, path)
    if data is None:
        raise CompExportError(_why(tensorrt, path, log.errors))
    cache.save(config)
    return Built(
        data=data,
        profiles={p.name: profile_shapes(p, dimensions) for p in graph.profiles},
        blocks=inspect_network(tensorrt, network),
    )


def _configure(tensorrt: TensorRT, config: Any, options: BuildOptions) -> None:
    trt = tensorrt.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names for the inspector
    if tensorrt.ahead_of_time:
        config.num_compute_capabilities = len(options.capabilities)
        for place, capability in enumerate(options.capabilities):
            member = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(trt.ComputeCapability, member), place)
    flags = {"embedded": (), "streamed": ("WEIGHT_STREAMING",), "stripped": ("STRIP_PLAN", "REFIT")}
    for flag in flags[options.weights]:
        config.set_flag(getattr(trt.BuilderFlag, flag))


def _run(builder: Any, network: Any, config: Any, path: Path) -> Any | None:
    """Return the serialised engine, or ``None`` if TensorRT failed; its log has the reason."""
    try:
        return builder.build_serialized_network(network, config)
    except MemoryError as error:
        raise CompExportError(_memory(str(path))) from error


def _why(tensorrt: TensorRT, path: Path, errors: list[str]) -> str:
    """The error message of a failed build."""
    text = " ".join(errors).lower()
    if any(word in text for word in OUT_OF_MEMORY):
        return _memory(str(path))
    reason = " ".join(errors[0].split()) if errors else "no reason given"
    return (
        f"{tensorrt.name} {tensorrt.version} cannot build {path}: {reason[:500]}; try another "
        "--precision, or smaller --max-batch and --max-prompt"
    )


def _memory(what: str) -> str:
    return (
        f"out of memory while building {what}: lower --max-batch, --images, --max-prompt or "
        "--max-new-tokens, take --precision float16, or build on a machine with more memory"
    )


def _logger(tensorrt: TensorRT) -> Any:
    trt = tensorrt.module

    class Log(trt.ILogger):  # type: ignore[name-defined]  # known at run time only
        """Collects errors; warnings only concern data types that the manifest states."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _monitor(tensorrt: TensorRT, progress: Progress, cancelled: Event) -> Any:
    trt = tensorrt.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """Reports phases, and stops the build when it is cancelled."""

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


@dataclass(frozen=True)
class _TimingCache:
    """A cache of measured kernels; ``tensorrt_rtx`` measures none ahead of time."""

    path: Path | None

    @classmethod
    def load(cls, tensorrt: TensorRT, config: Any, path: Path | None) -> "_TimingCache":
        if path is None or tensorrt.ahead_of_time:
            return cls(None)
        known = path.read_bytes() if path.is_file() else b""
        for start in (known, b""):  # a cache of another GPU or version is refused: begin anew
            if config.set_timing_cache(config.create_timing_cache(start), ignore_mismatch=False):
                break
        return cls(path)

    def save(self, config: Any) -> None:
        if self.path is None:
            return
        with writing(self.path) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
