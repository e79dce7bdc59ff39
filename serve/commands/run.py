"""``comp-export run``: run one request and print its result."""

from pathlib import Path

import click

from comp.commands.options import CommonOptions, common_options, run_argument, threads_option
from comp.errors import CompExportError
from serve.artifacts import ArtifactVariant
from serve.commands.variants import variant_options


@click.command(name="run")
@run_argument
@click.option(
    "--image",
    "images",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="An image file; repeat it for several images.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="The question or statement; for a caption its beginning; for retrieval a candidate text: repeat it "
    "for each.",
)
@click.option("--dense", is_flag=True, help="Use the dense artifact.")
@click.option(
    "--max-new-tokens",
    type=int,
    default=64,
    show_default=True,
    help="Longest answer in tokens.",
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Temperature of sampling; 0 is greedy.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens whose probabilities reach this sum.",
)
@click.option("--stop", multiple=True, help="End before this string; may be repeated.")
@click.option(
    "--keep-factor",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor on the keep ratios: above 1 keeps more tokens, below 1 fewer.",
)
@threads_option
@variant_options
@common_options
def command(
    run: Path,
    images: tuple[Path, ...],
    prompts: tuple[str, ...],
    dense: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    keep_factor: float,
    threads: int | None,
    variant: ArtifactVariant,
    options: CommonOptions,
) -> None:
    """Run the compressed artifact of RUN on your images, for its model's task.

    It answers a question, writes a caption, judges a statement about two images, or ranks texts for
    images. The answer is streamed to stdout, its times go to stderr.
    """
    from comp.runs import open_run
    from serve.artifacts import artifact_of
    from serve.bench.request import check_counts
    from serve.commands.printing import print_answer, print_judgement, print_ranking
    from serve.engines.blip_judge import Judge
    from serve.engines.retriever import Retriever
    from serve.evaluation.by_task import task_of
    from serve.generation.options import GenerationOptions
    from serve.loading import load_engine

    generation = GenerationOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=options.seed,
        stop=stop,
        keep_factor=keep_factor,
    )
    opened = open_run(run)
    directory = artifact_of(opened, "dense" if dense else "compressed", variant)
    task = task_of(directory)
    check_counts(task, len(images), len(prompts))
    if task in ("statement", "retrieval") and generation != GenerationOptions(seed=options.seed):
        raise CompExportError(
            f"a {task} model generates no text: leave out --max-new-tokens, --temperature, --top-p, "
            "--stop and --keep-factor"
        )
    engine = load_engine(
        directory, options.device, threads, provider=variant.provider, backend=variant.backend
    )
    origin = {
        "artifact": "dense" if dense else "compressed",
        "run": str(opened.path),
        "backend": engine.backend,
        "provider": engine.provider,
        "device": engine.device,
    }
    if isinstance(engine, Retriever):
        print_ranking(engine.rank(images, prompts), images, prompts, origin, options.json)
    elif isinstance(engine, Judge):
        print_judgement(engine.judge(images, prompts[0]), origin, options.json)
    else:
        prompt = prompts[0] if prompts else ""
        print_answer(engine.stream(images, prompt, generation), origin, options.json)
