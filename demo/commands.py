"""The commands ``comp-export demo`` and ``comp-export quickstart``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from comp.commands.options import CommonOptions, common_options, run_argument, threads_option
from comp.utils.console import print_json, say
from serve.artifacts import ArtifactVariant
from serve.commands.variants import variant_options

if TYPE_CHECKING:
    from demo.remote.client import Remote

# Parameters that only a page of a run has, and those of a page of a server.
OF_RUNS = ("run", "device", "threads", "backend", "provider", "flavour", "precision")
OF_SERVERS = ("models", "api_key_file")
HOST, PORT = "127.0.0.1", 7860


@click.command(name="demo")
@run_argument
@click.option("--host", default=HOST, show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--server",
    metavar="URL",
    help="Take two models of a running `comp-export serve`, such as http://127.0.0.1:8000, instead of RUN.",
)
@click.option(
    "--models",
    nargs=2,
    metavar="DENSE COMPRESSED",
    help="Ids of two models of the server [those of one checkpoint].",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with an API key of the server, readable by you alone; the first one counts "
    "[the variable COMP_EXPORT_API_KEYS].",
)
@threads_option
@variant_options
@common_options
@click.pass_context
def demo(
    context: click.Context,
    run: Path,
    host: str,
    port: int,
    server: str | None,
    models: tuple[str, str] | None,
    api_key_file: Path | None,
    threads: int | None,
    variant: ArtifactVariant,
    options: CommonOptions,
) -> None:
    """Serve the page of RUN: original and compressed side by side.

    The page depends on the model's task: ask about a picture, have it described, judge a statement about
    two pictures, or search pictures by captions and captions by pictures. The two models run one after the
    other. Ctrl-C stops it.

    With --server both models run there: questions and captions. The page loads no engine.
    """
    from demo.server import serve_page, serve_page_of

    _check_given(context, server)
    if server is None:
        page = serve_page(run, host, port, options.device, threads, block=False, variant=variant)
        shown = {"run": str(run)}
    else:
        remote = _remote(server, api_key_file)
        page = serve_page_of(remote, models, host, port, block=False)
        shown = {"server": remote.url}
    address = f"http://{host}:{port}"
    if options.json:
        print_json({"url": address, **shown})
    else:
        say(f"the page is at {address}; Ctrl-C stops it")
    page.block_thread()


def _check_given(context: click.Context, server: str | None) -> None:
    """Refuse options that the chosen kind of page does not use."""
    for name in OF_SERVERS if server is None else OF_RUNS:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            called = "RUN" if name == "run" else f"--{name.replace('_', '-')}"
            use = "is for --server URL" if server is None else "is for a page without --server"
            raise click.UsageError(f"{called} {use}: leave it out")


def _remote(url: str, key_file: Path | None) -> "Remote":
    """The server at an address, with the first of its keys."""
    from demo.remote.client import Remote
    from serve.server.keys import read_keys

    remote = Remote.at(url, next(iter(read_keys(key_file)), ""))
    if remote.is_open:
        say(f"{remote.url} gets the API key without TLS: others can read it on the way; use https")
    return remote


@click.command(name="quickstart")
@click.option(
    "--model", default="tiny-llava", show_default=True, help="Embedded model, directory or hub id."
)
@click.option(
    "--rate", type=float, default=0.62, show_default=True, help="Share of FLOPs to remove."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [runs/MODEL-RATE].")
@click.option(
    "--limit",
    "--questions",
    "limit",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="For eval: number of questions, pictures, statements or pairs.",
)
@click.option(
    "--whole",
    is_flag=True,
    help="Do the whole job also for a model that has an example run: prune it here, evaluate and bench it.",
)
@click.option("--force", is_flag=True, help="Start the run again.")
@common_options
def quickstart(
    model: str,
    rate: float,
    out: Path | None,
    limit: int,
    whole: bool,
    force: bool,
    options: CommonOptions,
) -> None:
    """Do everything before the page, in one command.

    tiny-llava at rate 0.62 comes pruned, as an example run: it is copied, exported and verified. Of other
    models and rates, and with --whole: prune, export, verify, evaluate and bench.

    Finished steps are skipped, an interrupted step resumes where it stopped.
    """
    from comp.cli import cli
    from comp.pipeline.example_run import example_run
    from comp.runs import RunDirectory
    from demo.quickstart import opening, perform, steps

    run = RunDirectory(out or Path("runs") / f"{Path(model).name}-{rate:g}")
    shared = ("--seed", str(options.seed), "--device", options.device)
    example = None if whole or run.is_interrupted else example_run(model, rate, options.seed)
    planned = steps(run, model, rate, limit, shared, force, example)
    if not options.json:
        say(opening(planned, run, example))
    outcomes = [perform(step, cli, options.json, say) for step in planned]
    run.point_latest_here()
    if options.json:
        print_json(
            {
                "run": str(run.path),
                "steps": [vars(outcome) for outcome in outcomes],
                "reports": {name: _report(run, name) for name in ("verify", "eval", "bench")},
            }
        )
        return
    say(f"{run.path} is ready: see it with `comp-export demo`")
    if example is not None:
        say("to prune it here, too, evaluate and bench it: `comp-export quickstart --whole`")


def _report(run: Any, name: str) -> Any:
    path = run.reports / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
