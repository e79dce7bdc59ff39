"""``comp-export eval``: measure the accuracy of both artifacts of a run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from comp.commands.options import (
    CommonOptions,
    common_options,
    data_options,
    run_argument,
    threads_option,
)
from comp.utils.console import print_json, print_table, progress, say
from comp.utils.files import write_text
from serve.artifacts import ArtifactVariant
from serve.commands.variants import variant_options

SPLITS = ("train", "validation", "test")


@click.command(name="eval")
@run_argument
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Number of examples [default: 2000, or all of --data].",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    help="Split of EmojiScenes, or of --data if it has splits [default: test].",
)
@data_options("Your own data: LLaVA-Instruct, VQAv2, Karpathy's JSON, NLVR2, or JSONL.")
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

    Questions: correct answers by kind (VQAv2's official accuracy if there are ten reference answers).
    Captions: objects named correctly, and CIDEr-D. Statements: accuracy. Retrieval: R@1, R@5 and R@10 in
    both directions. With 95 % intervals; greedy. Writes reports/eval.json and reports/eval.md.
    """
    from comp.runs import hold, open_run
    from comp.utils.machine import describe_machine, describe_versions
    from serve.artifacts import artifacts_of, is_verified
    from serve.evaluation.by_task import measure_of, task_of
    from serve.evaluation.examples import examples_of
    from serve.evaluation.scores import MeasureOptions, markdown
    from serve.loading import engines_of

    hold(open_run(run), "eval")
    directory, directories = artifacts_of(run, variant)
    task = task_of(directories["compressed"])
    examples, source = examples_of(task, data, images, split, limit, follow_links)
    measure = measure_of(task, MeasureOptions(batch_size, max_new_tokens, gallery, options.seed))
    engines = engines_of(directories, options.device, threads, variant)
    results = {}
    with progress(disable=options.json) as bar:
        for which, engine in engines.items():
            shown = bar.add_task(which, total=len(examples))
            results[which] = measure(engine, examples, partial(bar.advance, shown))
    dense, compressed = results["dense"], results["compressed"]
    report: dict[str, Any] = {
        "run": str(directory.path),
        "data": source,
        "task": task,
        "metric": measure.metric,
        "device": engines["dense"].device,
        "backend": engines["dense"].backend,
        "provider": engines["dense"].provider,
        "artifact": {"flavour": variant.flavour, "precision": variant.precision},
        "dense": dense.to_dict(),
        "compressed": compressed.to_dict(),
        "same_answer": _same(dense.predictions, compressed.predictions),
        "verified": all(is_verified(path) for path in directories.values()),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    name = f"eval{variant.suffix}"
    directory.write_report(name, report)
    title = f"Accuracy of {directory.path.name} on {source['name']}"
    write_text(directory.reports / f"{name}.md", markdown(dense, compressed, title, measure.metric))
    if options.json:
        print_json(report)
        return
    second = compressed.rows
    rows = [
        (name, figure.n, figure.cell(), second[name].cell()) for name, figure in dense.rows.items()
    ]
    print_table(title, ("", "n", "dense", "compressed"), rows)
    say(f"wrote {directory.reports / name}.json, {name}.md")


def _same(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of examples to which both artifacts give the same answer."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
