"""``comp-export bench``: measure dense against compressed, in turn."""

from pathlib import Path

import click

from comp.commands.options import CommonOptions, common_options, run_argument, threads_option
from comp.utils.console import print_json, print_table, say
from comp.utils.files import write_text
from comp.utils.progress import working
from serve.artifacts import ArtifactVariant
from serve.commands.variants import variant_options


@click.command(name="bench")
@run_argument
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Measure on this image [default: one of EmojiScenes]; may be repeated.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Measure on this question, statement or candidate text [default: that image's own].",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Length of every answer in tokens.",
)
@click.option(
    "--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Untimed runs."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=20, show_default=True, help="Timed runs."
)
@click.option(
    "--cold-starts",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Fresh processes to start, for cold start and peak memory.",
)
@threads_option
@click.option(
    "--against",
    multiple=True,
    metavar="BACKEND",
    help="Another backend for RUN, measured in the same turns: onnxruntime:cuda, "
    "onnxruntime:cpu:float16, openvino, openvino-bfloat16:int4, tensorrt, tensorrt:bfloat16; may be "
    "repeated.",
)
@variant_options
@common_options
def command(
    run: Path,
    images: tuple[Path, ...],
    prompts: tuple[str, ...],
    new_tokens: int,
    warmup: int,
    repeats: int,
    cold_starts: int,
    threads: int | None,
    against: tuple[str, ...],
    variant: ArtifactVariant,
    options: CommonOptions,
) -> None:
    """Measure speed, memory and size of RUN, the dense and the compressed artifact in turn.

    With --against, other backends are measured in the same turns.

    Writes reports/bench.json, bench.md and bench.png.
    """
    from comp.runs import hold, open_run
    from serve.artifacts import artifacts_of
    from serve.bench.compare import BenchOptions, Contestant, bench
    from serve.bench.report import (
        AGAINST_COLUMNS,
        against_rows,
        bench_figure,
        bench_markdown,
        bench_rows,
    )
    from serve.bench.request import work_of
    from serve.evaluation.by_task import task_of

    variants = [variant, *(ArtifactVariant.parse(text) for text in against)]
    hold(open_run(run), "bench")
    directory, _ = artifacts_of(run, variant)
    contestants = [Contestant(each, artifacts_of(run, each)[1]) for each in variants]
    bench_options = BenchOptions(
        work=work_of(
            task_of(contestants[0].directories["compressed"]),
            images,
            prompts,
            new_tokens,
            options.seed,
        ),
        warmup=warmup,
        repeats=repeats,
        cold_starts=cold_starts,
        device=options.device,
        threads=threads,
    )
    opening = (
        f"bench: {run}: {repeats} timed runs, {warmup} to warm up and {cold_starts} fresh processes "
        f"for each of {2 * len(contestants)} artifacts, in turn"
    )
    with working(opening, options.json) as started:
        result = bench(contestants, bench_options, started)
    report = {"run": str(directory.path), **result}
    name = f"bench{variant.suffix}"
    directory.write_report(name, report)
    title = f"{directory.path.name}: dense against compressed"
    write_text(directory.reports / f"{name}.md", bench_markdown(report, title))
    bench_figure(report, directory.reports / f"{name}.png", title)
    if options.json:
        print_json(report)
        return
    print_table(title, ("", "dense", "compressed", "gain"), bench_rows(report))
    if report["against"]:
        print_table("Side by side", AGAINST_COLUMNS, against_rows(report))
    if not report["verified"]:
        say("not verified: run `comp-export verify` to check these artifacts against the model")
    say(f"wrote {directory.reports / name}.json, {name}.md, {name}.png")
