"""``comp-export triton``: a model repository for NVIDIA Triton."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from comp.commands.options import CommonOptions, common_options, threads_option
from comp.errors import CompExportError
from comp.utils.console import print_json, say
from export.artifact.manifest import Flavour, Precision
from serve.commands.limits import limit_options

if TYPE_CHECKING:
    from serve.triton.repository import Wanted


@click.command(name="triton")
@click.argument("places", nargs=-1, metavar="[RUN|ARTIFACT|ID=PATH]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the repository, which Triton gets as --model-repository.",
)
@click.option(
    "--models",
    type=click.Choice(["all", "generate", "graphs"]),
    default="all",
    show_default=True,
    help="generate: a model that answers questions; graphs: each graph as a model of its own.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="Which artifacts of a RUN: graphs for ONNX Runtime, or engines for TensorRT.",
)
@click.option(
    "--flavour",
    type=click.Choice(get_args(Flavour)),
    help="Flavour of the artifacts of a RUN [default: the best for the backend].",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Precision of the artifacts of a RUN [default: float32; for tensorrt float16].",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Copies of each model; each has the weights in memory.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Most requests of a vision or text graph that Triton runs together.",
)
@limit_options
@click.option("--force", is_flag=True, help="Replace an existing directory.")
@threads_option
@common_options
def command(
    places: tuple[str, ...],
    out: Path,
    models: "Wanted",
    backend: str,
    flavour: Flavour | None,
    precision: Precision | None,
    instances: int,
    max_batch: int,
    max_num_seqs: int,
    max_queue: int,
    max_model_len: int | None,
    cache_memory: float,
    prefix_memory: float,
    max_new_tokens: int,
    max_images: int,
    force: bool,
    threads: int | None,
    options: CommonOptions,
) -> None:
    r"""Write a model repository for NVIDIA Triton from runs and artifacts.

    Models are named as by `comp-export serve`. --device is where Triton runs them: auto is the CPU for
    graphs, and the GPU for engines.

    \b
    Examples:
      comp-export triton --out repository
      comp-export triton runs/mine --out repository --models generate --device cuda --flavour standard
      comp-export triton clip=runs/clip/onnx --out repository
    """
    from serve.artifacts import ArtifactVariant, is_verified
    from serve.server.models import places_of
    from serve.triton.graphs import Running
    from serve.triton.repository import Repository, write_repository
    from serve.triton.settings import GeneratorSettings

    engines = backend == "tensorrt"
    if engines and options.device == "cpu":
        raise CompExportError("--backend tensorrt --device cpu: engines run on GPUs; leave one out")
    variant = ArtifactVariant.choose(
        "tensorrt" if engines else "onnxruntime", flavour=flavour, precision=precision
    )
    artifacts = [(name, path) for name, path, _ in places_of(places or ("runs/latest",), variant)]
    settings = GeneratorSettings(
        max_num_seqs,
        max_queue,
        max_model_len or 0,
        cache_memory,
        prefix_memory,
        max_new_tokens,
        max_images,
        threads or 0,
        options.seed,
    )
    place = "cuda" if engines or options.device == "cuda" else "cpu"
    running = Running("cuda" if place == "cuda" else "cpu", instances, max_batch, threads)
    written = write_repository(Repository(artifacts, models, running, settings), out, force)
    for name, path in artifacts:
        if not is_verified(path):
            say(f"triton: {name}: {path} is not verified: run `comp-export verify`")
    if options.json:
        print_json({"repository": str(out), "models": written})
    else:
        say(f"triton: {out}: {', '.join(written)}")
