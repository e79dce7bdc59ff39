"""``comp-export eval``: measure the accuracy of both artifacts of a run."""

from pathlib import Path

import click

from comp.commands.options import (
    CommonOptions,
    common_options,
    data_options,
    run_argument,
    threads_option,
)
from comp.utils.console import print_json, print_table, say
from comp.utils.progress import working
from serve.artifacts import ArtifactVariant
from serve.commands.variants import variant_options

SPLITS = ("train", "validation", "test")


@click.command(name="eval")
@run_argument
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Number of examples [default: 2000 of EmojiScenes, all of your own data].",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    help="Part of the data that RUN was pruned on, of EmojiScenes, or of --data if it has splits "
    "[default: test].",
)
@data_options(
    "Your own data: LLaVA-Instruct, VQAv2, Karpathy's JSON, NLVR2, or JSONL [default: the data that RUN was "
    "pruned on, or EmojiScenes]."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Examples answered together.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Longest answer in tokens.",
)
@click.option(
    "--gallery",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    help="Retrieval: number of images, and texts, ranked together.",
)
@threads_option
@variant_options
@common_options
def command(
    run: Path,
    limit: int | None,
    split: str | None,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    batch_size: int,
    max_new_tokens: int,
    gallery: int,
    threads: int | None,
    variant: ArtifactVariant,
    options: CommonOptions,
) -> None:
    """Measure the accuracy of the dense and the compressed artifact of RUN on their task.

    Questions: correct answers by kind (VQAv2's official accuracy if there are ten reference answers, token
    F1 if references are long).
    Captions: objects named correctly, and CIDEr-D. Statements: accuracy. Retrieval: R@1, R@5 and R@10 in
    both directions. With 95 % intervals; greedy. Writes reports/eval.json and reports/eval.md.
    """
    from comp.runs import hold, open_run
    from serve.evaluation.of_run import EvalRequest, evaluate_run
    from serve.evaluation.scores import MeasureOptions

    directory = open_run(run)
    hold(directory, "eval")
    request = EvalRequest(
        data,
        images,
        follow_links,
        split,
        limit,
        MeasureOptions(batch_size, max_new_tokens, gallery, options.seed),
        options.device,
        threads,
        variant,
    )
    what = "the test examples" if limit is None else f"up to {limit} examples"
    opening = f"eval: {run}: {what}, for the dense and the compressed artifact in turn"
    with working(opening, options.json, tasks=2) as started:
        result = evaluate_run(directory, request, started)
    if options.json:
        print_json(result.report)
        return
    second = result.compressed.rows
    rows = [
        (name, figure.n, figure.cell(), second[name].cell())
        for name, figure in result.dense.rows.items()
    ]
    print_table(result.title, ("", "n", "dense", "compressed"), rows)
    say(f"wrote {directory.reports / result.name}.json, {result.name}.md")
