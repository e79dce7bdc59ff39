"""``comp-export run``: one answer, streamed to the terminal."""

from pathlib import Path

import click

from comp.console import print_json, say
from comp.options import CommonOptions, common_options, run_argument
from serve.artifacts import Form
from serve.commands.forms import form_options


@click.command(name="run")
@run_argument
@click.option(
    "--image",
    "images",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="An image file; give it again for several images.",
)
@click.option("--prompt", required=True, help="The question.")
@click.option("--dense", is_flag=True, help="Use the dense artifact.")
@click.option("--max-new-tokens", type=int, default=64, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--stop", multiple=True, help="End before this string; may be given again.")
@click.option(
    "--keep-factor",
    type=float,
    default=1.0,
    show_default=True,
    help="Multiply the keep ratios: above 1 keeps more tokens, below 1 fewer.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@form_options
@common_options
def command(
    run: Path,
    images: tuple[Path, ...],
    prompt: str,
    dense: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    keep_factor: float,
    threads: int | None,
    form: Form,
    options: CommonOptions,
) -> None:
    """Answer one question about an image with the compressed artifact of RUN.

    The answer goes to stdout as it comes, its times to stderr.
    """
    from comp.runs import open_run
    from serve.artifacts import artifact_of
    from serve.engine import Engine
    from serve.options import GenerationOptions
    from serve.results import Finished, Generation, TokenText

    generation = GenerationOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=options.seed,
        stop=stop,
        keep_factor=keep_factor,
    )
    found = open_run(run)
    engine = Engine.load(
        artifact_of(found, "dense" if dense else "compressed", form),
        options.device,
        threads,
        provider=form.provider,
    )
    result: Generation | None = None
    for event in engine.stream(list(images), prompt, generation):
        if isinstance(event, TokenText) and not options.json:
            click.echo(event.text, nl=False)
        elif isinstance(event, Finished):
            result = event.generation
            if not options.json:
                click.echo(event.text)
    assert result is not None
    if options.json:
        print_json(
            {
                "text": result.text,
                "ttft_ms": result.ttft_ms,
                "tpot_ms": result.tpot_ms,
                "total_ms": result.total_ms,
                "kept": {str(m): places.tolist() for m, places in result.kept.by_layer.items()},
                "prompt_tokens": result.prompt_tokens,
                "image_tokens": result.image_tokens,
                "token_ids": list(result.token_ids),
                "finish_reason": result.finish_reason,
                "artifact": "dense" if dense else "compressed",
                "run": str(found.path),
                "backend": engine.backend,
                "provider": engine.provider,
                "device": engine.device,
            }
        )
        return
    say(
        f"{len(result.token_ids)} tokens · first after {result.ttft_ms:.1f} ms · "
        f"{result.tpot_ms:.2f} ms a token · total {result.total_ms:.1f} ms"
    )
    for layer, places in result.kept.by_layer.items():
        say(f"after layer {layer}: {places.size} of {result.prompt_tokens} tokens kept")
