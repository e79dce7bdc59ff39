"""``verify``: transformers on pictures and words = what users call; then the chain of graphs.

The first links (``export.verify.first_link``) begin at what a user hands in. The links of graphs follow:
masked torch = slim torch = ONNX Runtime = OpenVINO = TensorRT, and dense torch = its artifact. Such a link
compares neighbours of the chain on the same token ids and pixels: the largest logit difference of the
prefill, the kept token indices at each drop place, and the greedy answers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from comp.checkpoints.dense_model import DenseModelGoneError
from comp.errors import CompExportError
from comp.plan import Task
from comp.runs import RunDirectory
from comp.utils.files import write_text
from export.artifact.load import kind_of, load_artifact, mark_verified
from export.artifact.manifest import (
    MANIFEST_NAME,
    Artifact,
    Precision,
    Rounding,
    Verified,
    computed_in,
    sha256_of,
)
from export.tensorrt.manifest import Engines, load_engines, mark_engines_verified
from export.verify.compare import Answered, Link, Runner, ask_all, compare
from export.verify.families import Verification
from export.verify.first_link.compare import FirstLink, NotCompared
from export.verify.first_link.report import markdown_of
from export.verify.integer_weights import integer_weights, replaced_weights
from export.verify.interface import (
    Examples,
    Model,
    Questions,
    RuntimeVariant,
    Skipped,
    TorchReference,
)
from export.verify.tensorrt import EngineVariant

REPORT = "verify"
MASKED = "masked torch = slim torch"
FEW_PLACES = 4  # of which a table says each
COMPARED: dict[Task, str] = {
    "question": "questions of {data}, greedy answers of up to {max_new_tokens} tokens",
    "caption": "pictures of {data}, greedy captions of up to {max_new_tokens} tokens",
    "statement": "statements of {data}",
    "retrieval": "pairs of {data}, ranked among each other",
}


@dataclass(frozen=True)
class VerifyRequest:
    """What is asked: so many questions of a data set, answers up to so many tokens."""

    examples: Examples
    source: str
    questions: int = 200
    max_new_tokens: int = 16


class FirstLinks(Protocol):
    """Makes the first links of a run's artifacts."""

    def __call__(
        self, run: RunDirectory, artifacts: list[Artifact], dense: Callable[[], Model | None]
    ) -> list[FirstLink | NotCompared]:
        """``dense`` loads the adapter that ``prune`` trains, when it is called."""
        ...


def verify_run(
    run: RunDirectory,
    asked: VerifyRequest,
    first: FirstLinks,
    device: str = "cpu",
    started: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
    model: str | None = None,
) -> dict[str, Any]:
    """Prove a run and write ``reports/verify.json``, ``reports/verify.md`` and the manifests' mark.

    Args:
        run: with a slim checkpoint and at least one artifact.
        asked: the questions.
        first: compares transformers with what users call.
        device: where the torch models run.
        started: told of each form's name and number of questions; returns what to call after each.
        model: where the dense model is now, if it is no longer where the run says.

    Returns:
        The report: ``ok``, ``first_links``, ``links``, ``artifacts``, ``questions``, ``data``.

    Raises:
        CompExportError: nothing to verify, a damaged artifact, or another model in the dense one's place. Of
            one that is gone the links are listed as not compared.
    """
    artifacts, engines = find_artifacts(run), find_engines(run)
    family = Verification.of(artifacts[0])
    sides: list[tuple[TorchReference, str]] = []

    def loaded() -> tuple[TorchReference, str]:
        if not sides:  # when first links have given their memory back
            sides.append(_side(family, run, artifacts[0], device, model))
        return sides[0]

    first_links = first(run, artifacts, lambda: loaded()[0].dense)
    side, gone = loaded()
    questions = Questions(asked.examples, asked.questions, side.prepare)

    def answers(name: str, runner: Runner) -> list[Answered]:
        done = started(name, len(questions))
        return side.conclude(ask_all(runner, questions, asked.max_new_tokens, done))

    dense_torch = []
    if not gone and any(artifact.manifest.dense for artifact in artifacts):
        dense_torch = answers("dense torch", side.dense_runner())
    slim = answers("slim torch", side.slim_runner())
    rounded = dict(_with_integers(artifacts, family, side, answers))
    links: list[Link] = []
    outcome: dict[str, bool] = {}
    skipped = [
        Skipped(each.name, each.reason) for each in first_links if isinstance(each, NotCompared)
    ]
    if gone:
        skipped.append(Skipped(MASKED, gone))
    else:
        masked = answers("masked torch", side.masked_runner())
        links.append(compare(MASKED, "float32", side.places, masked, slim))
    cut_holds = all(link.ok for link in links)
    layers: dict[str, dict[str, tuple[str, ...]]] = {}
    for form in family.all_forms(artifacts, engines):
        if isinstance(form, RuntimeVariant) and form.dense and gone:
            form = Skipped(f"dense torch = {form.name}", gone)
        if isinstance(form, Skipped):
            skipped.append(form)
            continue
        runner = form.load()
        if isinstance(runner, EngineVariant):
            layers[form.directory.name] = runner.layers
        found = answers(form.name, runner)
        torch_name, expected = ("dense", dense_torch) if form.dense else ("slim", slim)
        if form.directory.name in rounded:
            torch_name = f"{torch_name} {form.precision}"
            expected = rounded[form.directory.name]
        name = f"{torch_name} torch = {form.name}"
        places = () if form.dense else side.places
        link = compare(name, form.precision, places, expected, found, form.bfloat16)
        links.append(link)
        holds = link.ok and (form.dense or cut_holds)
        outcome[form.directory.name] = outcome.get(form.directory.name, True) and holds
    made = [link for link in first_links if isinstance(link, FirstLink)]
    for first_link in made:
        name = first_link.artifact
        if name in outcome:
            outcome[name] = outcome[name] and first_link.ok
    report = {
        "ok": all(link.ok for link in made) and all(link.ok for link in links),
        "run": run.path.name,
        "task": artifacts[0].manifest.task,
        "data": asked.source,
        "questions": len(questions),
        "max_new_tokens": asked.max_new_tokens,
        "first_links": [link.to_dict() for link in made],
        "links": [link.to_dict() for link in links],
        "skipped": [{"name": form.name, "reason": form.reason} for form in skipped],
        "artifacts": outcome,
        "engine_layers": layers,
    }
    path = run.write_report(REPORT, report)
    write_text(path.with_suffix(".md"), markdown(report))
    digest = sha256_of(path)
    for name, holds in outcome.items():
        mark(run.path / name, Verified(ok=holds, report_sha256=digest))
    return report


def _side(
    family: Verification, run: RunDirectory, artifact: Artifact, device: str, model: str | None
) -> tuple[TorchReference, str]:
    """The torch models of a run, and why there is no dense one; empty where there is."""
    try:
        return family.side(run, artifact, device, model), ""
    except DenseModelGoneError as error:
        return family.slim_side(run, artifact, device), str(error)


def _with_integers(
    artifacts: list[Artifact],
    family: Verification,
    side: TorchReference,
    answers: Callable[[str, Runner], list[Answered]],
) -> Iterator[tuple[str, list[Answered]]]:
    """By directory, what torch answers with the integers of that artifact as its weights.

    Both flavours are held against the same answers, so that one with other integers stands out.
    """
    found: dict[tuple[bool, Precision, Rounding | None], list[Answered]] = {}
    for artifact in artifacts:
        manifest = artifact.manifest
        if computed_in(manifest.precision) == manifest.precision:
            continue
        if manifest.dense and side.dense is None:
            continue
        dense, key = manifest.dense, (manifest.dense, manifest.precision, manifest.rounding)
        if key not in found:
            word, model = ("dense", side.dense) if dense else ("slim", side.slim)
            runner = side.dense_runner() if dense else side.slim_runner()
            assert model is not None
            with replaced_weights(model.model, integer_weights(artifact.path), family.naming):
                found[key] = answers(f"{word} torch, {manifest.precision}", runner)
        yield artifact.path.name, found[key]


def task_of(run: RunDirectory) -> Task:
    """What the model of a run does, as its artifacts say.

    Raises:
        CompExportError: there is no artifact, or a damaged one.
    """
    return find_artifacts(run, check_hashes=False)[0].manifest.task


def mark(directory: Path, verified: Verified) -> None:
    """Record an outcome in the manifest of an artifact or of engines."""
    if kind_of(directory) == "tensorrt":
        mark_engines_verified(directory, verified)
    else:
        mark_verified(directory, verified)


def find_engines(run: RunDirectory) -> list[Engines]:
    """Every engine directory of a run, checked against its manifest; there may be none."""
    found = sorted(path.parent for path in run.path.glob(f"tensorrt*/{MANIFEST_NAME}"))
    return [load_engines(path) for path in found]


def find_artifacts(run: RunDirectory, check_hashes: bool = True) -> list[Artifact]:
    """Every ONNX artifact of a run, checked against its manifest.

    Raises:
        CompExportError: when there is none, or one is damaged.
    """
    found = sorted(path.parent for path in run.path.glob(f"onnx*/{MANIFEST_NAME}"))
    if not found:
        raise CompExportError(f"{run.path} has no artifact: run `comp-export onnx {run.path}`")
    return [load_artifact(path, check_hashes) for path in found]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    verdict = "holds" if report["ok"] else "DOES NOT HOLD"
    lines = [
        f"# Parity of {report['run']}: {verdict}",
        "",
        *markdown_of(report["first_links"]),
        "## Graphs",
        "",
        f"{report['questions']} {COMPARED[report['task']].format(**report)}.",
        "",
        (
            "| link | holds | largest difference of outputs (bound) | kept sets identical | "
            "answers identical | ties |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for link in report["links"]:
        compared = link["questions"] - len(link["tied"])
        kept = _kept(link, compared)
        worst = link["max_logit_difference"]
        lines.append(
            f"| {link['name']} | {'yes' if link['ok'] else 'NO'} "
            f"| {'not finite' if worst is None else f'{worst:.2e}'} ({link['bound']:g}) "
            f"| {kept} | {link['answers']['identical']}/{compared} "
            f"| {len(link['tied'])} |"
        )
    lines += [
        "",
        *(f"- Not compared: {each['name']}: {each['reason']}." for each in report["skipped"]),
    ]
    lines += [
        "",
        (
            "A tie is a question where two forms keep different tokens, choose different candidates, or "
            "go on with different words, whose scores are equal within the rounding of the link's "
            "precision; it is counted here and not compared further."
        ),
        "",
    ]
    return "\n".join(lines)


def _kept(link: dict[str, Any], compared: int) -> str:
    """``language 8: 200/200, …``; of many places only those where something differs."""
    if not link["kept"]:
        return "no drops"
    different = [place for place in link["kept"] if place["different"]]
    told = link["kept"] if len(link["kept"]) <= FEW_PLACES else different
    if not told:
        return f"{compared}/{compared} at each of {len(link['kept'])} places"
    return ", ".join(
        f"{place['part']} {place['after_layer']}: {place['identical']}/{compared}" for place in told
    )
