"""The graphs of an artifact as Triton models: their tensors, their files, and how Triton batches them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comp.errors import CompExportError
from export.artifact.caches import PAST
from export.artifact.llava_manifest import IN_PLACE
from export.artifact.manifest import REMEDY, Artifact
from export.artifact.onnx_file import Dims, OnnxFile, Port, read_onnx_file
from export.tensorrt.manifest import Engines
from export.tensorrt.names import DECODER
from serve.triton.config import ANY, ModelConfig, Place, TensorConfig, data_type_of

ROWS = (
    "batch",
    "images",
    "texts",
)  # the first size of a tensor with rows that do not know each other
ONNX_MODEL, PLAN = "model.onnx", "model.plan"  # the names that Triton looks for


@dataclass(frozen=True)
class GraphModel:
    """A graph as a Triton model.

    Attributes:
        files: the files of its version directory, by their path in it.
    """

    config: ModelConfig
    files: dict[str, Path]


@dataclass(frozen=True)
class Running:
    """How graph models run.

    Attributes:
        instances: copies of each.
        max_batch: most requests that Triton runs together, for graphs whose tensors all have a batch.
        threads: of one operator on the CPU; None: all cores.
    """

    place: Place
    instances: int = 1
    max_batch: int = 16
    threads: int | None = None


def onnx_models(artifact: Artifact, name: str, running: Running) -> Iterator[GraphModel]:
    """Yield the graphs of an artifact for the ONNX Runtime backend, without the decoder for TensorRT.

    Raises:
        CompExportError: a graph cannot be read, or has a tensor that Triton does not know.
    """
    for graph in artifact.manifest.graphs:
        if graph == IN_PLACE:
            continue
        path = artifact.path / graph
        model = f"{name}-{path.stem}"
        yield GraphModel(_config(read_onnx_file(path, REMEDY), path, model, running), _files(path))


def plan_models(engines: Engines, name: str, running: Running) -> Iterator[GraphModel]:
    """Yield the engines for the TensorRT backend; Triton reads their tensors from the plans.

    The decoder of a LLaVA is left out: it writes its caches in place, and Triton gives outputs other memory.

    Raises:
        CompExportError: Triton cannot load such engines.
    """
    manifest = engines.manifest
    for wanted, value, option in (
        ("tensorrt", manifest.module, "--module tensorrt"),
        ("embedded", manifest.weights, "--weights embedded"),
    ):
        if value != wanted:
            raise CompExportError(
                f"{engines.path} has engines with {value}, and Triton's TensorRT backend takes {wanted}: "
                f"build them with `comp-export tensorrt {option}`, or pass --models generate"
            )
    for key, entry in manifest.engines.items():
        if key == DECODER and entry.graph == IN_PLACE:
            continue
        model = f"{name}-{Path(entry.graph).stem}"
        config = ModelConfig(model, "tensorrt", running.place, instances=running.instances)
        yield GraphModel(config, {PLAN: engines.path / entry.file})


def _config(graph: OnnxFile, path: Path, name: str, running: Running) -> ModelConfig:
    batched = _is_batched(graph)
    skipped = 1 if batched else 0
    threads = {} if running.threads is None else {"intra_op_thread_count": str(running.threads)}
    return ModelConfig(
        name,
        "onnxruntime",
        running.place,
        [_tensor(each, port, path, skipped, graph) for each, port in graph.inputs.items()],
        [_tensor(each, port, path, skipped) for each, port in graph.outputs.items()],
        running.instances,
        running.max_batch if batched else 0,
        parameters=threads,
    )


def _is_batched(graph: OnnxFile) -> bool:
    """Whether all tensors have a row a request, and no input is optional or a cache."""
    if any(name in graph.weights or name.startswith(PAST) for name in graph.inputs):
        return False  # caches differ in length from request to request
    ports = [*graph.inputs.values(), *graph.outputs.values()]
    return all(port.dims and port.dims[0] in ROWS for port in ports)


def _tensor(
    name: str, port: Port, path: Path, skipped: int, graph: OnnxFile | None = None
) -> TensorConfig:
    if port.dims is None:
        raise CompExportError(f"{path}: {name} has no dimensions: {REMEDY}")
    optional = graph is not None and name in graph.weights  # an initializer is its default
    dtype = data_type_of(port.dtype, f"{path}: {name}")
    return TensorConfig(name, dtype, _sizes(port.dims)[skipped:] or (1,), optional)


def _sizes(dims: Dims) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else ANY for size in dims)


def _files(path: Path) -> dict[str, Path]:
    """The graph's files: a graph with external weights is a directory, as Triton demands."""
    weights: Sequence[str] = sorted(read_onnx_file(path, REMEDY).external)
    if not weights:
        return {ONNX_MODEL: path}
    return {f"{ONNX_MODEL}/{ONNX_MODEL}": path} | {
        f"{ONNX_MODEL}/{each}": path.parent / each for each in weights
    }
