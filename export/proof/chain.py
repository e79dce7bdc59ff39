"""Run ``verify``: compare transformers with the engines on raw inputs, then the chain of graphs.

The first links (``export.proof.first_link``) start from a user's inputs. The links of graphs follow:
masked torch = slim torch = ONNX Runtime = OpenVINO = TensorRT, and dense torch = its artifact. Each of them
compares neighbours of the chain on the same token ids and pixels: the largest logit difference of the
prefill, the kept token indices at each drop place, and the greedy answers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from comp.checkpoints.dense_model import DenseModelGoneError
from comp.errors import CompExportError
from comp.plan import Task
from comp.runs import RunDirectory
from comp.utils.files import write_text
from export.artifact.load import kind_of, load_artifact, read_manifest
from export.artifact.manifest import (
    MANIFEST_NAME,
    Artifact,
    Manifest,
    Precision,
    Rounding,
    Verified,
    computed_in,
    sha256_of,
)
from export.proof.compare import Answered, Link, Runner, ask_all, compare
from export.proof.conclusion import conclusion_of
from export.proof.families import Verification
from export.proof.first_link.compare import FirstLink, NotCompared
from export.proof.first_link.report import markdown_of
from export.proof.first_link.request import EXAMPLES, awkward
from export.proof.integer_weights import (
    RoundedWeights,
    integer_weights,
    replaced_weights,
    rounded_from,
)
from export.proof.interface import Examples, Model, Questions, Skipped
from export.proof.tensorrt import EngineVariant, engine_variant
from export.proof.torch_reference import TorchReference
from export.tensorrt.manifest import Engines, load_engines, read_engine_manifest

REPORT = "verify"
MASKED = "masked torch = slim torch"
FEW_PLACES = 4  # tables list each of them up to this number
COMPARED: dict[Task, str] = {
    "question": "questions of {data}, greedy answers of up to {max_new_tokens} tokens",
    "caption": "pictures of {data}, greedy captions of up to {max_new_tokens} tokens",
    "statement": "statements of {data}",
    "retrieval": "pairs of {data}, ranked among each other",
}


@dataclass(frozen=True)
class VerifyRequest:
    """Request to verify: the data set, the number of its questions, and the length of answers.

    Attributes:
        examples: the data set.
        source: its name, for the report.
        questions: number of examples to use.
        max_new_tokens: longest answer.
    """

    examples: Examples
    source: str
    questions: int = 200
    max_new_tokens: int = 16


class FirstLinks(Protocol):
    """Runs the first links of a run's artifacts."""

    def __call__(
        self, run: RunDirectory, artifacts: list[Artifact], dense: Callable[[], Model | None]
    ) -> list[FirstLink | NotCompared]:
        """``dense`` loads the dense adapter when it is called."""
        ...


def verify_run(
    run: RunDirectory,
    request: VerifyRequest,
    first: FirstLinks,
    device: str = "cpu",
    started: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
    model: str | None = None,
) -> dict[str, Any]:
    """Verify a run; write ``reports/verify.json``, ``reports/verify.md`` and the mark in the manifests.

    Args:
        run: a run with a slim checkpoint and at least one artifact.
        request: the questions.
        first: compares transformers with what users call.
        device: device of the torch models.
        started: called with each variant's name and number of questions; returns the callback for each.
        model: where the dense model is now, if it was moved after the run.

    Returns:
        The report: ``ok``, ``first_links``, ``links``, ``artifacts``, ``questions``, ``data``.

    Raises:
        CompExportError: nothing to verify, a damaged artifact, or another model in place of the dense one.
            If the dense model is gone, its links are listed as not compared.
    """
    artifacts, engines = find_artifacts(run), find_engines(run)
    family = Verification.of(artifacts[0])
    references: list[tuple[TorchReference[Any], str]] = []

    def loaded() -> tuple[TorchReference[Any], str]:
        if not references:  # when first links have given their memory back
            references.append(_reference(family, run, artifacts[0], device, model))
        return references[0]

    first_links = first(run, artifacts, lambda: loaded()[0].dense)
    reference, gone = loaded()
    questions = Questions(request.examples, request.questions, reference.prepare)

    def answers(name: str, runner: Runner) -> list[Answered]:
        done = started(name, len(questions))
        return reference.conclude(ask_all(runner, questions, request.max_new_tokens, done))

    graphs = _compare_graphs(family, artifacts, engines, reference, gone, answers)
    compared = [link for link in first_links if isinstance(link, FirstLink)]
    skipped = [
        Skipped(each.name, each.reason) for each in first_links if isinstance(each, NotCompared)
    ]
    skipped += graphs.skipped
    outcome = graphs.outcome
    for first_link in compared:
        name = first_link.artifact
        if name in outcome:
            outcome[name] = outcome[name] and first_link.ok
    report = {
        "ok": all(link.ok for link in compared)
        and all(link.ok for link in graphs.links)
        and all(each.ok for each in graphs.weights.values()),
        "run": run.path.name,
        "task": artifacts[0].manifest.task,
        "data": request.source,
        "questions": len(questions),
        "max_new_tokens": request.max_new_tokens,
        "first_links": [link.to_dict() for link in compared],
        "links": [link.to_dict() for link in graphs.links],
        "weights": [each.to_dict() for each in graphs.weights.values()],
        "skipped": [{"name": variant.name, "reason": variant.reason} for variant in skipped],
        "artifacts": outcome,
        "engine_layers": graphs.layers,
    }
    path = run.write_report(REPORT, report)
    write_text(path.with_suffix(".md"), markdown(report))
    digest = sha256_of(path)
    for name, holds in outcome.items():
        mark(run.path / name, Verified(ok=holds, report_sha256=digest))
    return report


@dataclass
class GraphLinks:
    """The links between torch and the graphs of a run.

    Attributes:
        links: the compared links.
        weights: by the name of an artifact's folder, its integers against the weights they were rounded from.
        skipped: links that cannot be compared on this machine.
        outcome: by the name of an artifact's folder, whether all of its links hold.
        layers: by the folder of engines, which layers TensorRT computes in which precision.
    """

    links: list[Link] = field(default_factory=list)
    weights: dict[str, RoundedWeights] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    outcome: dict[str, bool] = field(default_factory=dict)
    layers: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)


def _compare_graphs(
    family: Verification,
    artifacts: list[Artifact],
    engines: list[Engines],
    reference: TorchReference[Any],
    gone: str,
    answers: Callable[[str, Runner], list[Answered]],
) -> GraphLinks:
    """Compare masked torch with slim torch, and every graph with the torch model of its weights.

    Args:
        family: family of the run's model.
        artifacts, engines: those to compare.
        reference: the torch models.
        gone: why there is no dense model; empty if there is one.
        answers: returns a runner's answers to all questions; takes also its name.
    """
    graphs = GraphLinks()
    torch_answers: dict[str, list[Answered]] = {"dense": []}
    if not gone and any(artifact.manifest.dense for artifact in artifacts):
        torch_answers["dense"] = answers("dense torch", reference.dense_runner())
    torch_answers["slim"] = answers("slim torch", reference.slim_runner())
    rounded = dict(_with_integers(artifacts, family, reference, answers, graphs.weights))
    if gone:
        graphs.skipped.append(Skipped(MASKED, gone))
    else:
        masked = answers("masked torch", reference.masked_runner())
        graphs.links.append(
            compare(MASKED, "float32", reference.places, masked, torch_answers["slim"])
        )
    cut_holds = all(link.ok for link in graphs.links)
    variants = [variant for artifact in artifacts for variant in family.variants(artifact)]
    variants += [engine_variant(each, family.engines) for each in engines]
    for variant in variants:
        if isinstance(variant, Skipped):
            graphs.skipped.append(variant)
            continue
        if variant.dense and gone:
            graphs.skipped.append(Skipped(f"dense torch = {variant.name}", gone))
            continue
        runner, folder = variant.load(), variant.directory.name
        if isinstance(runner, EngineVariant):
            graphs.layers[folder] = runner.layers
        graph = answers(variant.name, runner)
        weights = "dense" if variant.dense else "slim"
        torch_name, expected = weights, torch_answers[weights]
        if folder in rounded:
            torch_name, expected = f"{weights} {variant.precision}", rounded[folder]
        places = () if variant.dense else reference.places
        name = f"{torch_name} torch = {variant.name}"
        link = compare(name, variant.precision, places, expected, graph, variant.bfloat16)
        graphs.links.append(link)
        holds = link.ok and (variant.dense or cut_holds)
        if folder in graphs.weights:
            holds = holds and graphs.weights[folder].ok
        graphs.outcome[folder] = graphs.outcome.get(folder, True) and holds
    return graphs


def _reference(
    family: Verification, run: RunDirectory, artifact: Artifact, device: str, model: str | None
) -> tuple[TorchReference[Any], str]:
    """Load the torch models of a run; also return why there is no dense one (empty if there is)."""
    try:
        return family.reference(run, artifact, device, model), ""
    except DenseModelGoneError as error:
        return family.load(None, run.checkpoint, run.load_plan(), artifact, device), str(error)


def _with_integers(
    artifacts: list[Artifact],
    family: Verification,
    reference: TorchReference[Any],
    answers: Callable[[str, Runner], list[Answered]],
    weights: dict[str, RoundedWeights],
) -> Iterator[tuple[str, list[Answered]]]:
    """Yield by directory the answers of torch with the integer weights of that artifact.

    Both flavours are compared with the same answers, so that an artifact with other integers stands out.
    The integers are compared with the weights that they were rounded from, which goes into ``weights``.
    """
    answered: dict[tuple[bool, Precision, Rounding | None], list[Answered]] = {}
    for artifact in artifacts:
        manifest = artifact.manifest
        if computed_in(manifest.precision) == manifest.precision:
            continue
        if manifest.dense and reference.dense is None:
            continue
        dense, key = manifest.dense, (manifest.dense, manifest.precision, manifest.rounding)
        word, model = ("dense", reference.dense) if dense else ("slim", reference.slim)
        assert model is not None
        integers, where = integer_weights(artifact.path), artifact.path.name
        name = f"{word} weights = {manifest.precision} weights ({where})"
        weights[where] = rounded_from(
            name, manifest.precision, model.model, integers, family.naming
        )
        if key not in answered:
            runner = reference.dense_runner() if dense else reference.slim_runner()
            with replaced_weights(model.model, integers, family.naming):
                answered[key] = answers(f"{word} torch, {manifest.precision}", runner)
        yield artifact.path.name, answered[key]


def task_of(run: RunDirectory) -> Task:
    """The task of a run's model, as its artifacts record it.

    Raises:
        CompExportError: there is no artifact, or a damaged one.
    """
    return find_artifacts(run, check_hashes=False)[0].manifest.task


def mark(directory: Path, verified: Verified) -> None:
    """Record a verification in the manifest of an artifact or of engines."""
    read = read_engine_manifest if kind_of(directory) == "tensorrt" else read_manifest
    read(directory).model_copy(update={"verified": verified}).save(directory)


def find_engines(run: RunDirectory) -> list[Engines]:
    """Open every engine directory of a run; there may be none."""
    paths = sorted(path.parent for path in run.path.glob(f"tensorrt*/{MANIFEST_NAME}"))
    return [load_engines(path) for path in paths]


def find_artifacts(run: RunDirectory, check_hashes: bool = True) -> list[Artifact]:
    """Open every ONNX artifact of a run.

    Raises:
        CompExportError: there is none, or one is damaged.
    """
    paths = sorted(path.parent for path in run.path.glob(f"onnx*/{MANIFEST_NAME}"))
    if not paths:
        raise CompExportError(f"{run.path} has no artifact: run `comp-export onnx {run.path}`")
    return [load_artifact(path, check_hashes) for path in paths]


def answers_needed(manifests: Sequence[Manifest], questions: int) -> int:
    """Estimate the number of answers of a verification, to say how long it takes.

    Args:
        manifests: those of the run's artifacts, at least one. Whether this machine can compare a link is not
            known before: the estimate counts all links of these artifacts, and no engines.
        questions: number of examples that torch and the graphs answer.
    """
    dense = sum(manifest.dense for manifest in manifests)
    readings = len(manifests) + 3  # each artifact; transformers, training; the slim checkpoint
    readings += len(manifests) - dense  # the slim checkpoint is compared with the compressed ones
    torch_models = 2 + bool(dense)  # slim, masked, dense
    torch_models += len(
        {
            (manifest.dense, manifest.precision, manifest.rounding)
            for manifest in manifests
            if computed_in(manifest.precision) != manifest.precision
        }
    )
    graphs = sum(2 if manifest.flavour == "standard" else 1 for manifest in manifests)
    requests = min(EXAMPLES, questions) + sum(1 for _ in awkward(manifests[0].task))
    return readings * requests + (torch_models + graphs) * questions


def markdown(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    verdict = "holds" if report["ok"] else "DOES NOT HOLD"
    lines = [
        f"# Parity of {report['run']}: {verdict}",
        "",
        *markdown_of(report["first_links"]),
        "## Graphs",
        "",
        f"{report['questions']} {COMPARED[report['task']].format(**report)}.",
        "",
        conclusion_of(report),
        "",
        (
            "| link | holds | largest difference of outputs (bound) | by kind (bound) | "
            "kept sets identical | answers identical | ties |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for link in report["links"]:
        compared = link["questions"] - len(link["tied"])
        kept = _kept(link, compared)
        worst = link["max_logit_difference"]
        lines.append(
            f"| {link['name']} | {'yes' if link['ok'] else 'NO'} "
            f"| {'not finite' if worst is None else f'{worst:.2e}'} ({link['bound']:g}) "
            f"| {_by_kind(link)} | {kept} | {link['answers']['identical']}/{compared} "
            f"| {len(link['tied'])} |"
        )
    lines += [
        "",
        *(_of_weights(each) for each in report["weights"]),
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


def _by_kind(link: dict[str, Any]) -> str:
    """``embedding: cosine distance 1.2e-07 (1e-06)``, …: the measures that are no plain difference."""
    return "; ".join(
        f"{each['kind']}: {each['measure']} "
        f"{'not finite' if each['worst'] is None else format(each['worst'], '.1e')} "
        f"({each['bound']:g})"
        for each in link["outputs"]
        if each["measure"] != "absolute"
    )


def _of_weights(each: dict[str, Any]) -> str:
    """One line of the integers of an artifact."""
    worst = each["max_row_distance"]
    return (
        f"- {each['name']}: {'holds' if each['ok'] else 'DOES NOT HOLD'}: the farthest row is "
        f"{'not finite' if worst is None else format(worst, '.2g')} of its length away (bound "
        f"{each['bound']:g}), of {each['where']}."
    )


def _kept(link: dict[str, Any], compared: int) -> str:
    """``language 8: 200/200, …``; if there are many places only those with differences."""
    if not link["kept"]:
        return "no drops"
    different = [place for place in link["kept"] if place["different"]]
    listed = link["kept"] if len(link["kept"]) <= FEW_PLACES else different
    if not listed:
        return f"{compared}/{compared} at each of {len(link['kept'])} places"
    return ", ".join(
        f"{place['part']} {place['after_layer']}: {place['identical']}/{compared}"
        for place in listed
    )
