"""``comp-export serve``: an HTTP server over runs and artifacts."""

from pathlib import Path
from typing import Literal, get_args

import click

from comp.commands.options import CommonOptions, common_options, threads_option
from comp.errors import CompExportError
from comp.utils.console import print_json
from serve.artifacts import ArtifactVariant
from serve.commands.fleet_options import FleetOptions, fleet_options
from serve.commands.limits import limit_options
from serve.commands.variants import variant_options

LogFormat = Literal["text", "json"]


@click.command(name="serve")
@click.argument("places", nargs=-1, metavar="[RUN|ARTIFACT|ID=PATH]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port."
)
@limit_options
@click.option(
    "--image-memory",
    type=click.FloatRange(min=0),
    default=0.25,
    show_default=True,
    help="GiB for the features of images of a model, which may come again. 0 keeps none.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that a request may take, with waiting.",
)
@click.option(
    "--keep-factor",
    metavar="FACTOR|auto",
    default="1",
    show_default=True,
    help="Factor on the keep ratios of compressed models, if the request names none. auto: more image "
    "tokens when idle, fewer when many requests wait.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path),
    help="File with one API key a line, readable by you alone [the variable COMP_EXPORT_API_KEYS].",
)
@click.option(
    "--allow-remote-images",
    "image_hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="A host that images may be fetched from; repeat it for each [none].",
)
@click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    default="text",
    show_default=True,
    help="Form of the log on stderr: a line of words, or a JSON object, for each request.",
)
@click.option(
    "--log-prompts",
    is_flag=True,
    help="Also log the words of requests; images as their SHA-256. Never keys.",
)
@threads_option
@fleet_options
@variant_options
@common_options
def command(
    places: tuple[str, ...],
    host: str,
    port: int,
    max_num_seqs: int,
    max_queue: int,
    max_model_len: int | None,
    cache_memory: float,
    image_memory: float,
    prefix_memory: float,
    max_new_tokens: int,
    max_images: int,
    request_timeout: float,
    keep_factor: str,
    api_keys: Path | None,
    image_hosts: tuple[str, ...],
    log_format: LogFormat,
    log_prompts: bool,
    threads: int | None,
    fleet: FleetOptions | None,
    variant: ArtifactVariant,
    options: CommonOptions,
) -> None:
    r"""Serve runs and artifacts to any client of OpenAI's API.

    A RUN has two models: the dense one under its own name, and the compressed one under the run's. An
    ARTIFACT is a directory with manifest.json. ID=PATH gives another name. Without any: runs/latest.

    Without a seed in the request, --seed begins the draws of sampling.

    \b
    Examples:
      comp-export serve
      comp-export serve runs/tiny-llava-0.62 --port 8001
      comp-export serve fast=runs/mine/onnx --api-keys keys.txt
      comp-export serve runs/mine --ray --replicas 1-4
    """
    from comp.utils.address import check_address
    from serve.artifacts import is_verified
    from serve.scheduling.adaptive import factor_named
    from serve.server.keys import read_keys
    from serve.server.listening import listen
    from serve.server.logs import START, configure_logs
    from serve.server.models import Limits, load_models, places_of
    from serve.server.settings import Server, Settings

    configure_logs(log_format)
    arguments = places or ("runs/latest",)
    factor = factor_named(keep_factor)
    if fleet is None or fleet.yaml is None:
        check_address(host, port)
    keys = read_keys(api_keys)
    limits = Limits(
        rows=max_num_seqs,
        queue=max_queue,
        max_model_len=max_model_len,
        cache_bytes=int(cache_memory * 2**30),
        image_bytes=int(image_memory * 2**30),
        prefix_bytes=int(prefix_memory * 2**30),
    )
    for name, path, _ in places_of(arguments, variant):
        unverified = "" if is_verified(path) else " (not verified: run `comp-export verify`)"
        START.info("serve: %s: %s%s", name, path, unverified)
    if fleet is not None:
        from serve.commands.on_ray import models_of, replicas_of, serve_on_ray
        from serve.fleet.config import FleetConfig

        config = FleetConfig(
            models=models_of(arguments, variant),
            replicas=replicas_of(fleet, limits, threads),
            api_keys=None if api_keys is None else str(api_keys.resolve()),
            keys_required=bool(keys),  # those of the variable may be here, and not on the nodes
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
            max_model_len=max_model_len,
            cache_memory=cache_memory,
            image_memory=image_memory,
            prefix_memory=prefix_memory,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            request_timeout=request_timeout,
            keep_factor=factor,
            image_hosts=image_hosts,
            log_format=log_format,
            log_prompts=log_prompts,
            seed=options.seed,
            device=options.device,
            threads=threads,
        )
        serve_on_ray(config, fleet, host, port, options)
        return
    models = load_models(arguments, variant, limits, options.device, threads)
    if factor != 1 and not any(model.keeps_by_factor for model in models):
        raise CompExportError(
            f"--keep-factor {keep_factor}: no model here takes a factor; leave it out, or serve a compressed "
            "artifact of the onnxruntime flavour that drops image tokens"
        )
    settings = Settings(
        max_images=max_images,
        max_new_tokens=max_new_tokens,
        request_seconds=request_timeout,
        keys=keys,
        image_hosts=image_hosts,
        seed=options.seed,
        keep_factor=factor,
        log_prompts=log_prompts,
    )
    address = f"http://{host}:{port}/v1"
    if options.json:
        print_json({"url": address, "models": [model.id for model in models]})
    else:
        START.info("serve: %s; Ctrl-C stops it", address)
    listen(Server(models, settings), host, port)
