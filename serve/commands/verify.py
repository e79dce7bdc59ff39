"""``comp-export verify``: verify the artifacts of a run."""

from pathlib import Path

import click

from comp.commands.options import CommonOptions, common_options, data_options, run_argument
from comp.utils.console import print_json, print_table, say
from comp.utils.progress import working

EXIT_FAILED = 1


@click.command(name="verify")
@run_argument
@click.option(
    "--questions",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Number of examples that each variant answers.",
)
@data_options(
    "Your own data: LLaVA-Instruct, VQAv2, Karpathy's JSON, NLVR2, or JSONL [default: the test "
    "part of the data that RUN was pruned on, or of EmojiScenes]."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Length of the greedy answers to compare.",
)
@click.option(
    "--answer-seconds",
    type=click.FloatRange(min=0),
    help="In the first links: time after which transformers only reads further requests, without answering "
    "[default: no limit].",
)
@click.option("--model", help="The dense model, if it is no longer where RUN names it.")
@common_options
def command(
    run: Path,
    questions: int,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    max_new_tokens: int,
    answer_seconds: float | None,
    model: str | None,
    options: CommonOptions,
) -> None:
    """Verify that transformers and all variants of RUN give the same answers, from raw inputs on.

    The first links: transformers itself, on the original checkpoint, against what `run` and the page
    call, on pictures and words as users have them: token ids, pixels, logits, answers and their ends;
    the slim checkpoint likewise. Then masked torch, slim torch, ONNX Runtime, OpenVINO and TensorRT:
    largest logit difference, kept tokens at each drop place, greedy answers; the standard flavour also in
    OpenVINO. Engines need an NVIDIA GPU; what cannot run here is listed as not compared. Writes
    reports/verify.json and verify.md, marks the artifacts, and exits with status 1 if a link does not hold.
    """
    from comp.runs import open_run
    from export.api import verify
    from export.proof.chain import answers_needed, find_artifacts
    from export.proof.conclusion import conclusion_of
    from export.proof.first_link.report import COLUMNS, notes_of, rows_of
    from export.proof.first_link.request import EXAMPLES

    artifacts = find_artifacts(open_run(run), check_hashes=False)
    names = ", ".join(artifact.path.name for artifact in artifacts)
    opening = (
        f"verify: {run}: torch and every artifact ({names}) answer {questions} examples each, transformers "
        f"{min(questions, EXAMPLES)}"
    )
    manifests = [artifact.manifest for artifact in artifacts]
    units = answers_needed(manifests, questions)
    with working(opening, options.json, units=units) as started:
        report = verify(
            run,
            questions=questions,
            data=data,
            images=images,
            follow_links=follow_links,
            max_new_tokens=max_new_tokens,
            answer_seconds=answer_seconds,
            model=model,
            device=options.device,
            started=started,
        )
    if options.json:
        print_json(report)
    else:
        if report["first_links"]:
            print_table("", COLUMNS, rows_of(report["first_links"]), numbers_from=2)
            for note in notes_of([link for link in report["first_links"] if not link["ok"]]):
                say(note)
        rows = [
            (
                link["name"],
                "yes" if link["ok"] else "NO",
                "not finite"
                if link["max_logit_difference"] is None
                else f"{link['max_logit_difference']:.1e}",
                sum(len(place["different"]) for place in link["kept"]),
                len(link["answers"]["different"]),
                len(link["tied"]),
            )
            for link in report["links"]
        ]
        columns = ("link", "holds", "outputs", "kept differ", "answers differ", "ties")
        print_table(
            f"{report['questions']} examples of {report['data']}", columns, rows, numbers_from=2
        )
    for each in report["skipped"] if not options.json else ():
        say(f"not compared: {each['name']}: {each['reason']}")
    if not options.json:
        say(conclusion_of(report))
    if not report["ok"]:
        click.get_current_context().exit(EXIT_FAILED)
