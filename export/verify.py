"""``verify``: masked torch = slim torch = ONNX Runtime = TensorRT, and dense torch = its artifact.

A link compares neighbours of the chain on the same questions: the largest logit difference of the
prefill, the kept token indices at each drop place, and the greedy answers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from comp.checkpoints import resolve_model
from comp.data.example import Example
from comp.errors import CompExportError
from comp.files import write_text
from comp.runs import RunDirectory
from export.engines.manifest import Engines, load_engines, mark_engines_verified
from export.forms import EngineForm, Form, Skipped, artifact_forms, engine_form
from export.manifest import (
    MANIFEST_NAME,
    Artifact,
    Verified,
    kind_of,
    load_artifact,
    mark_verified,
    sha256_of,
)
from export.parity import Answered, Question, Runner, ask_all, compare

REPORT = "verify"


class Questions:
    """Examples as the model sees them, made when asked for (pictures are large)."""

    def __init__(self, collator: Any, examples: "Examples", count: int) -> None:
        self._collator = collator
        self._examples = examples
        self._count = min(count, len(examples))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Question]:
        for index in range(self._count):
            example = self._examples[index]
            ids = np.array([self._collator.prompt_ids(example.question)], dtype=np.int64)
            yield Question(self._collator.pixels([example]).numpy(), ids)


class Examples(Protocol):
    """A data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True)
class Asked:
    """What is asked: so many questions of a data set, answers up to so many tokens."""

    examples: Examples
    source: str
    questions: int = 200
    max_new_tokens: int = 16


def verify_run(
    run: RunDirectory,
    asked: Asked,
    device: str = "cpu",
    started: Callable[[str, int], Callable[[], None]] = lambda name, total: lambda: None,
) -> dict[str, Any]:
    """Prove a run and write ``reports/verify.json``, ``reports/verify.md`` and the manifests' mark.

    Args:
        run: with a slim checkpoint and at least one artifact.
        asked: the questions.
        device: where the torch models run.
        started: told of each form's name and number of questions; returns what to call after each.

    Returns:
        The report: ``ok``, ``links``, ``artifacts``, ``questions``, ``data``.

    Raises:
        CompExportError: nothing to verify, or a damaged artifact.
    """
    from export.torch_runner import TorchSide

    artifacts, engines = find_artifacts(run), find_engines(run)
    plan = run.load_plan()
    record = run.read_record()
    dense = resolve_model(record.get("model_path") or record["model"])
    eos = artifacts[0].manifest.tokens.eos_token_ids
    side = TorchSide.load(dense, run.checkpoint, plan, eos, device)
    questions = Questions(side.dense.collator, asked.examples, asked.questions)
    places = tuple(drop.after_layer for drop in plan.drops)

    def answers(name: str, runner: Runner) -> list[Answered]:
        return ask_all(runner, questions, asked.max_new_tokens, started(name, len(questions)))

    dense_torch = []
    if any(artifact.manifest.dense for artifact in artifacts):
        dense_torch = answers("dense torch", side.dense_runner())
    slim = answers("slim torch", side.slim_runner())
    masked = answers("masked torch", side.masked_runner())
    links = [compare("masked torch = slim torch", "float32", places, masked, slim)]
    outcome: dict[str, bool] = {}
    skipped: list[Skipped] = []
    layers: dict[str, dict[str, tuple[str, ...]]] = {}
    for form in forms_of(artifacts, engines):
        if isinstance(form, Skipped):
            skipped.append(form)
            continue
        runner = form.load()
        if isinstance(runner, EngineForm):
            layers[form.directory.name] = runner.layers
        found = answers(form.name, runner)
        torch_name, expected = ("dense", dense_torch) if form.dense else ("slim", slim)
        name = f"{torch_name} torch = {form.name}"
        link = compare(name, form.precision, () if form.dense else places, expected, found)
        links.append(link)
        holds = link.ok and (form.dense or links[0].ok)
        outcome[form.directory.name] = outcome.get(form.directory.name, True) and holds
    report = {
        "ok": all(link.ok for link in links),
        "run": run.path.name,
        "data": asked.source,
        "questions": len(questions),
        "max_new_tokens": asked.max_new_tokens,
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


def forms_of(artifacts: list[Artifact], engines: list[Engines]) -> "Iterator[Form | Skipped]":
    """Every form of every artifact, the engines' last."""
    for artifact in artifacts:
        yield from artifact_forms(artifact)
    for each in engines:
        yield engine_form(each)


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


def find_artifacts(run: RunDirectory) -> list[Artifact]:
    """Every ONNX artifact of a run, checked against its manifest.

    Raises:
        CompExportError: when there is none, or one is damaged.
    """
    found = sorted(path.parent for path in run.path.glob(f"onnx*/{MANIFEST_NAME}"))
    if not found:
        raise CompExportError(f"{run.path} has no artifact: run `comp-export onnx {run.path}`")
    return [load_artifact(path) for path in found]


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    verdict = "holds" if report["ok"] else "DOES NOT HOLD"
    lines = [
        f"# Parity of {report['run']}: {verdict}",
        "",
        (
            f"{report['questions']} questions of {report['data']}, greedy answers of up to "
            f"{report['max_new_tokens']} tokens."
        ),
        "",
        (
            "| link | holds | largest logit difference (bound) | kept sets identical | "
            "greedy answers identical | ties |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for link in report["links"]:
        compared = link["questions"] - len(link["tied"])
        kept = ", ".join(
            f"after {place['after_layer']}: {place['identical']}/{compared}"
            for place in link["kept"]
        )
        worst = link["max_logit_difference"]
        lines.append(
            f"| {link['name']} | {'yes' if link['ok'] else 'NO'} "
            f"| {'not finite' if worst is None else f'{worst:.2e}'} ({link['bound']:g}) "
            f"| {kept or 'no drops'} | {link['answers']['identical']}/{compared} "
            f"| {len(link['tied'])} |"
        )
    lines += [
        "",
        *(f"- Not compared: {each['name']}: {each['reason']}." for each in report["skipped"]),
    ]
    lines += [
        "",
        (
            "A tie is a question where two forms keep different tokens whose scores are equal "
            "within the rounding of the link's precision; it is counted here and not compared "
            "further."
        ),
        "",
    ]
    return "\n".join(lines)
