"""Check an artifact before it is moved into place: the short form of verify's first link."""

from collections.abc import Callable
from pathlib import Path

from comp.data.embedded import embedded_examples
from comp.runs import RunDirectory
from comp.utils.console import say
from export.artifact.load import load_artifact
from export.proof.first_link.compare import NotCompared
from serve.first_link.links import FromUsers, Started, refuse_parted

EXAMPLES, NEW_TOKENS, SECONDS = 4, 8, 15.0
NOT_ANSWERED = "answers in other precisions than float32 are compared by verify"


def check_of_export(
    run: RunDirectory, name: str, dense: bool, model: str | None, started: Started
) -> Callable[[Path], None]:
    """Make the check of one artifact (``export.run_exporter.Check``).

    Args:
        run: the run that the artifact is exported from.
        name: name of the artifact's directory, for reports.
        dense: whether it is the dense model.
        model: where the dense model is now, if it was moved after the run.
        started: called with each side's name and number of requests; returns the callback for each.

    Returns:
        A function of the directory; it raises ``CompExportError`` if the artifact differs from transformers.
    """

    def check(directory: Path) -> None:
        artifact = load_artifact(directory, check_hashes=False)
        examples = embedded_examples(artifact.manifest.task, "train", EXAMPLES)
        alone = "" if artifact.manifest.precision == "float32" else NOT_ANSWERED
        first = FromUsers(examples, EXAMPLES, NEW_TOKENS, SECONDS, name, model, alone)

        def named(side: str, total: int) -> Callable[[], None]:
            return started(f"{name}: {side}", total)

        links = first.of_original(run, [artifact], started=named)
        if not dense:
            links += first.of_slim(run.checkpoint, [artifact], started=named)
        refuse_parted(links)
        for link in links:
            if isinstance(link, NotCompared):
                say(f"not compared: {link.name}: {link.reason}")

    return check
