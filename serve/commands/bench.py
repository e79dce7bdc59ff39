"""``comp-export bench``: measure dense against compressed, in turn."""

from pathlib import Path

import click

from comp.commands.options import CommonOptions, common_options, run_argument
from comp.utils.console import print_json, print_table, progress, say
from comp.utils.files import write_text
from serve.artifacts import ArtifactVariant
from serve.commands.forms import form_options


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
@click.option("--new-tokens", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--cold-starts", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option(
    "--against",
    multiple=True,
    metavar="BACKEND",
    help="Another backend for RUN, measured in the same turns: onnxruntime:cuda, "
    "onnxruntime:cpu:float16, openvino, openvino-bfloat16:int4, tensorrt, tensorrt:bfloat16; may be "
    "repeated.",
)
@form_options
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
    form: ArtifactVariant,
    options: CommonOptions,
) -> None:
    """Measure speed, memory and size of RUN, the dense and the compressed artifact in turn.

    With --against, other backends are measured in the same turns.

    Writes reports/bench.json, bench.md and bench.png.
    """
    from comp.runs import hold, open_run
    from serve.artifacts import artifacts_of
    from serve.bench.compare import BenchOptions, Contestant, bench, steps_of
    from serve.bench.report import (
        AGAINST_COLUMNS,
        against_rows,
        bench_figure,
        bench_markdown,
        bench_rows,
    )
    from serve.bench.request import work_of
    from serve.evaluation.by_task import task_of

    forms = [form, *(ArtifactVariant.parse(text) for text in against)]
    hold(open_run(run), "bench")
    found, _ = artifacts_of(run, form)
    contestants = [Contestant(each, artifacts_of(run, each)[1]) for each in forms]
    asked = BenchOptions(
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
    with progress(disable=options.json) as bar:
        task = bar.add_task("bench", total=steps_of(asked, len(contestants)))
        result = bench(contestants, asked, lambda: bar.advance(task))
    report = {"run": str(found.path), **result}
    name = f"bench{form.suffix}"
    found.write_report(name, report)
    title = f"{found.path.name}: dense against compressed"
    write_text(found.reports / f"{name}.md", bench_markdown(report, title))
    bench_figure(report, found.reports / f"{name}.png", title)
    if options.json:
        print_json(report)
        return
    print_table(title, ("", "dense", "compressed", "gain"), bench_rows(report))
    if report["against"]:
        print_table("Side by side", AGAINST_COLUMNS, against_rows(report))
    if not report["verified"]:
        say("not verified: run `comp-export verify` to check these artifacts against the model")
    say(f"wrote {found.reports / name}.json, {name}.md, {name}.png")
