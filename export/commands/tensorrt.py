"""``comp-export tensorrt``: build the TensorRT engines of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comp.commands.options import CommonOptions, common_options, run_argument
from comp.errors import CompExportError
from comp.utils.console import print_json, print_table, say
from comp.utils.progress import Task, working

if TYPE_CHECKING:
    from comp.runs import RunDirectory
    from export.artifact.manifest import Precision
    from export.tensorrt.build.engine import BuildOptions, Weights
    from export.tensorrt.library import ModuleName, TensorRT
    from export.tensorrt.limits import Limits
    from export.tensorrt.manifest import EngineManifest

MIB = 2**20
STRIP_ABOVE = 4 * 2**30  # bytes of weights; above, they are not stored twice
MODULES = {"auto": None, "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@click.command(name="tensorrt")
@run_argument
@click.option(
    "--precision",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
    help="Which standard artifact to build from; attention is fused in float16 and bfloat16.",
)
@click.option(
    "--compute-capability",
    metavar="8.9,…",
    help="Compute capabilities to build for [default: this machine's GPU, or all from 8.0 on].",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Largest batch of prompts.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="Images per prompt [default: 1; for a statement always 2].",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(min=1),
    help="Text tokens per prompt, including the template, without image tokens [default: 128, or "
    "all positions of a CLIP or BLIP].",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="New tokens per answer [default: 128, or all positions of a BLIP].",
)
@click.option(
    "--weights",
    type=click.Choice(["auto", "embedded", "streamed", "stripped"]),
    default="auto",
    show_default=True,
    help="embedded: in the engine; streamed: embedded, for GPUs with less memory than the weights; "
    "stripped: read from the ONNX files at load time (needs a GPU to build). "
    "auto strips above 4 GiB if there is a GPU.",
)
@click.option(
    "--module",
    type=click.Choice(list(MODULES)),
    default="auto",
    show_default=True,
    help="auto takes tensorrt if there is a GPU, otherwise tensorrt-rtx.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Cache of measured kernels, read and written [default: timing.cache in the run; tensorrt "
    "only: tensorrt-rtx measures none ahead of time].",
)
@click.option(
    "--dense/--no-dense",
    default=True,
    show_default=True,
    help="Also build the dense model, the baseline.",
)
@click.option("--force", is_flag=True, help="Replace existing engines.")
@common_options
def command(
    run: Path,
    precision: "Precision",
    compute_capability: str | None,
    max_batch: int,
    images: int | None,
    max_prompt: int | None,
    max_new_tokens: int | None,
    weights: str,
    module: str,
    timing_cache: Path | None,
    dense: bool,
    force: bool,
    options: CommonOptions,
) -> None:
    """Build TensorRT engines of RUN from its standard ONNX artifacts.

    tensorrt builds on the GPU that the engines will run on; tensorrt-rtx compiles on any machine
    for chosen compute capabilities. Engines are written to tensorrt/ and tensorrt-dense/ of the run; for
    precisions other than float16 to tensorrt-bfloat16/ and so on.
    """
    from comp.runs import hold, open_run
    from export.graph.float32_layers import overflow_warning
    from export.tensorrt.build.capability import choose_capabilities, parse_capabilities
    from export.tensorrt.build.directory import choose_limits
    from export.tensorrt.build.engine import BuildOptions
    from export.tensorrt.gpu import gpu_capability
    from export.tensorrt.library import find_tensorrt

    requested = parse_capabilities(compute_capability) if compute_capability is not None else None
    directory = open_run(run)
    hold(directory, "tensorrt")
    name: ModuleName | None = MODULES[module]  # type: ignore[assignment]  # click checked it
    tensorrt = find_tensorrt(name)
    capabilities = choose_capabilities(tensorrt, requested, gpu_capability())
    wanted = _wanted(directory, precision, dense, force)
    limits = choose_limits(
        next(iter(wanted.values())),
        max_batch=max_batch,
        images=images,
        max_prompt=max_prompt,
        max_new_tokens=max_new_tokens,
    )
    build_options = BuildOptions(
        capabilities=capabilities,
        weights=_weights(weights, wanted, tensorrt, gpu_capability()),
        timing_cache=timing_cache or directory.path / "timing.cache",
    )
    manifests = _build(tensorrt, wanted, limits, build_options, options)
    for out, built in manifests.items():
        activations = built.artifact.activations
        warning = activations and overflow_warning(out.name, activations)
        if warning:
            say(warning)
    if options.json:
        print_json(_result(directory, manifests))
        return
    rows = [
        (
            out.name,
            f"{manifest.size_bytes / MIB:.1f} MiB",
            ", ".join(manifest.compute_capabilities),
            _attention(manifest),
            sum(b.caches_in_place for e in manifest.engines.values() for b in e.blocks),
        )
        for out, manifest in manifests.items()
    ]
    columns = ("engines", "size", "compute capability", "fused attention", "caches in place")
    title = f"{tensorrt.name} {tensorrt.version}, {precision}, weights {build_options.weights}"
    print_table(title, columns, rows)
    say(f"verify them on a GPU with `comp-export verify {run}`")


def _wanted(
    run: "RunDirectory", precision: "Precision", dense: bool, force: bool
) -> dict[Path, Path]:
    """Artifacts to build from, by the directory to write.

    Raises:
        CompExportError: an artifact is missing, or engines are there already.
    """
    from export.artifact.manifest import MANIFEST_NAME
    from export.exporter import artifact_directory
    from export.graph.builder import Target
    from export.tensorrt.names import engine_directory

    wanted = {}
    for is_dense in (False, True) if dense else (False,):
        source = artifact_directory(run.path, is_dense, Target("standard", precision))
        if not (source / MANIFEST_NAME).is_file():
            others = sorted(path.parent.name for path in run.path.glob(f"onnx*/{MANIFEST_NAME}"))
            existing = f" (it has {', '.join(others)})" if others else ""
            raise CompExportError(
                f"{run.path} has no {source.name}{existing}: run `comp-export onnx {run.path} "
                f"--flavour standard --precision {precision}`"
            )
        out = engine_directory(run.path, is_dense, precision)
        if out.exists() and not force:
            raise CompExportError(f"{out} exists already: pass --force to replace it")
        wanted[out] = source
    return wanted


def _weights(
    option: str, wanted: dict[Path, Path], tensorrt: "TensorRT", gpu: str | None
) -> "Weights":
    from export.artifact.load import read_manifest

    if option == "stripped" and gpu is None:
        raise CompExportError(
            f"--weights stripped: {tensorrt.name} strips weights on a machine with a GPU only: "
            "build there, or take --weights streamed"
        )
    if option == "auto":
        largest = max(read_manifest(source).size_bytes for source in wanted.values())
        return "stripped" if gpu is not None and largest > STRIP_ABOVE else "embedded"
    return option  # type: ignore[return-value]  # click checked it


def _build(
    tensorrt: "TensorRT",
    wanted: dict[Path, Path],
    limits: "Limits",
    build_options: "BuildOptions",
    options: CommonOptions,
) -> dict[Path, "EngineManifest"]:
    from export.tensorrt.build.directory import build_engines

    manifests = {}
    names = " and ".join(out.name for out in wanted)
    opening = f"tensorrt: building the engines of {names} with {tensorrt.name}"
    with working(opening, options.json, units=len(wanted)) as work:
        for out, source in wanted.items():
            task = work.task(out.name)

            def phase(engine: str, phase: str, task: Task = task, out: Path = out) -> None:
                task.describe(f"{out.name}/{engine}: {phase}"[:72])

            manifests[out] = build_engines(tensorrt, source, out, limits, build_options, phase)
            task.at(1, total=1)
    return manifests


def _attention(manifest: "EngineManifest") -> str:
    blocks = [block for engine in manifest.engines.values() for block in engine.blocks]
    fused = sum(block.attention == "fused" for block in blocks)
    return f"{fused} of {len(blocks)}"


def _result(run: "RunDirectory", manifests: dict[Path, "EngineManifest"]) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "engines": {
            out.name: {
                "directory": str(out),
                "bytes": manifest.size_bytes,
                **manifest.model_dump(
                    mode="json",
                    include={
                        "module",
                        "module_version",
                        "compute_capabilities",
                        "weights",
                        "limits",
                        "cache_capacities",
                        "engines",
                    },
                ),
                "precision": manifest.artifact.precision,
            }
            for out, manifest in manifests.items()
        },
    }
