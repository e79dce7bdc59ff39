"""Run all first links of a run: transformers on raw inputs, against what users call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from comp.checkpoints.dense_model import DenseModelGoneError, dense_model_of
from comp.errors import CompExportError
from comp.runs import RunDirectory
from export.artifact.encoder_manifest import EncoderArtifact
from export.artifact.llava_manifest import LlavaArtifact
from export.artifact.manifest import Artifact, Precision, computed_in
from export.proof.first_link.compare import FirstLink, NotCompared, answers_of, compare_readings
from export.proof.first_link.in_training import InTraining
from export.proof.first_link.reading import Side
from export.proof.first_link.request import EXAMPLES, Requests
from serve.backends.onnxruntime.vnni_check import multiplies_exactly
from serve.first_link.served import Served
from serve.loading import load_engine

Started = Callable[[str, int], Callable[[], None]]
INTEGERS = "weights of {precision} answer otherwise; they are compared below with torch of the same integers"
READ_ALONE = "the artifact is compressed, transformers has the original: their answers may differ"
NO_BFLOAT16 = "ONNX Runtime has no bfloat16 on CPUs; its readings are those of the other artifacts"
NO_VNNI = (
    "it is {precision}, and this CPU adds products of bytes in 16 bits (it has no VNNI); it answers on "
    "machines that have it"
)


class _Against(Protocol):
    def __call__(self, side: Side, precision: Precision = "float32") -> FirstLink: ...


@dataclass(frozen=True)
class FromUsers:
    """Runs first links.

    Attributes:
        examples: examples of the model's task.
        count: number of examples; the awkward requests are added.
        max_new_tokens: length of a greedy answer.
        seconds: time after which transformers answers no further requests; ``None``: no limit.
        called: the artifact's name in reports; empty: that of its directory.
        model: where the dense model is now, if it was moved after the run.
        reads_alone: why models are not run; empty if they are.
    """

    examples: Any
    count: int = EXAMPLES
    max_new_tokens: int = 16
    seconds: float | None = None
    called: str = ""
    model: str | None = None
    reads_alone: str = ""

    def of_run(
        self,
        device: str,
        started: Started,
        run: RunDirectory,
        artifacts: Sequence[Artifact],
        dense: Callable[[], Any],
    ) -> list[FirstLink | NotCompared]:
        """Run the first links of a run's artifacts (``export.proof.chain.FirstLinks``).

        The original checkpoint is compared with every artifact and the batches of ``prune``, the slim
        checkpoint with the compressed artifacts.
        """
        links = self.of_original(
            run, artifacts, device, started, lambda: iter([InTraining(dense())])
        )
        compressed = [artifact for artifact in artifacts if not artifact.manifest.dense]
        return links + self.of_slim(run.checkpoint, compressed, device, started)

    def of_original(
        self,
        run: RunDirectory,
        artifacts: Sequence[Artifact],
        device: str = "cpu",
        started: Started = lambda name, total: lambda: None,
        others: Callable[[], Iterator[Side]] = lambda: iter(()),
    ) -> list[FirstLink | NotCompared]:
        """Compare the original checkpoint in transformers with artifacts and other sides.

        Args:
            run: names the original checkpoint.
            artifacts: for dense ones answers are compared, for others only the processed inputs.
            device: device of the model in transformers.
            started: called with each side's name and number of requests; returns the callback for each.
            others: makes further sides, after transformers has freed its memory.
        """
        try:
            original = dense_model_of(run, self.model)
        except DenseModelGoneError as error:
            return [NotCompared("transformers", str(error))]
        return self._links(original, "transformers", artifacts, device, started, others)

    def of_slim(
        self,
        checkpoint: Path,
        artifacts: Sequence[Artifact],
        device: str = "cpu",
        started: Started = lambda name, total: lambda: None,
    ) -> list[FirstLink | NotCompared]:
        """Compare the slim checkpoint of a run in transformers with its compressed artifacts.

        Raises:
            CompExportError: transformers cannot load it.
        """
        name = "transformers, slim checkpoint"
        return self._links(
            checkpoint, name, artifacts, device, started, lambda: iter(()), slim=True
        )

    def _links(
        self,
        checkpoint: Path,
        name: str,
        artifacts: Sequence[Artifact],
        device: str,
        started: Started,
        others: Callable[[], Iterator[Side]],
        slim: bool = False,
    ) -> list[FirstLink | NotCompared]:
        if not artifacts:
            return []
        from export.proof.first_link.in_transformers import InTransformers
        from export.proof.first_link.memory import memory_lacking

        manifest = artifacts[0].manifest
        run = slim or any(artifact.manifest.dense for artifact in artifacts)
        not_run = self.reads_alone or ("" if run else READ_ALONE)
        kind = manifest.family, manifest.task
        drops = slim and any(_drops(artifact) for artifact in artifacts)
        if drops and device == "cpu":  # transformers runs again while engines are loaded
            not_run = not_run or memory_lacking(checkpoint, beside_engine=True)
        try:
            reference = InTransformers(checkpoint, *kind, name, device, not_run)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if slim:  # which this project wrote
                raise CompExportError(
                    f"transformers cannot load {checkpoint} ({reason}): make the run again with `comp-export "
                    "prune --force`"
                ) from error
            return [NotCompared(name, f"transformers cannot load {checkpoint}: {reason}")]
        requests = Requests(self.examples, self.count, manifest.task, reference.special_tokens)
        done = started(name, len(requests))
        ends = None if self.seconds is None else monotonic() + self.seconds
        expected = answers_of(
            reference,
            requests,
            self.max_new_tokens,
            lambda: ends is None or monotonic() < ends,
            done,
        )
        if not drops:
            reference.close()

        def against(side: Side, precision: Precision = "float32") -> FirstLink:
            done = started(side.name, len(requests))
            return compare_readings(
                expected, reference, side, requests, self.max_new_tokens, precision, done, drops
            )

        links = [self._of_artifact(artifact, name, slim, against) for artifact in artifacts]
        reference.close()
        return links + [against(side) for side in others()]

    def _of_artifact(
        self, artifact: Artifact, reference: str, slim: bool, against: _Against
    ) -> FirstLink | NotCompared:
        manifest, name = artifact.manifest, f"serve ({self.called or artifact.path.name})"
        if manifest.precision == "bfloat16":
            return NotCompared(f"{reference} = {name}", NO_BFLOAT16)
        integers = computed_in(manifest.precision) != manifest.precision
        if integers and manifest.flavour == "onnxruntime" and not multiplies_exactly():
            return NotCompared(
                f"{reference} = {name}", NO_VNNI.format(precision=manifest.precision)
            )
        engine = load_engine(artifact.path, device="cpu", check_hashes=False)
        side = Served(engine, name, of_tower=not slim)
        if integers:
            side.not_run = INTEGERS.format(precision=manifest.precision)
        elif manifest.dense == slim:
            side.not_run = READ_ALONE
        link = against(side, manifest.precision)
        link.artifact = artifact.path.name
        return link


def _drops(artifact: Artifact) -> bool:
    """Whether a model drops tokens, or selects tokens of its vision tower."""
    if isinstance(artifact, LlavaArtifact):
        return (
            bool(artifact.manifest.decoder.drops) or artifact.manifest.vision.selection is not None
        )
    return isinstance(artifact, EncoderArtifact) and bool(artifact.manifest.drops)


def refuse_parted(links: Sequence[FirstLink | NotCompared]) -> None:
    """Refuse an artifact that processes or answers requests differently than transformers.

    Raises:
        CompExportError: names the link and the first step with a difference.
    """
    for link in links:
        if isinstance(link, FirstLink) and not link.ok:
            raise CompExportError(
                f"{link.name} does not hold: {link.why}; nothing was exported (--no-check exports it all "
                "the same)"
            )
