"""The parts of the families in ``verify`` and calibration."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from comp.checkpoints.dense_model import dense_model_of
from comp.registry.code import resolve
from comp.registry.families import family_called
from comp.runs import RunDirectory
from export.artifact.encoder_manifest import EncoderArtifact
from export.artifact.manifest import Artifact
from export.onnxruntime.graph import LoadGraph
from export.onnxruntime.named_graphs import NumpyGraphs
from export.proof.compare import Runner
from export.proof.encoder_runtimes import graph_variants
from export.proof.interface import RuntimeVariant, Skipped
from export.proof.tensorrt import Asking, asking_graphs
from export.proof.torch_reference import TorchReference


@dataclass(frozen=True)
class Verification:
    """Runs a family's artifacts, in torch and in any runtime of their graphs.

    Attributes:
        load: loads the torch models of a run.
        variants: yields those of an artifact.
        on_graphs: returns a runner of an artifact's graphs; takes the function that loads them.
        engines: returns a runner of engines.
        naming: maps tensor names of torch to those of the artifact.
    """

    load: Callable[..., TorchReference[Any]]
    variants: Callable[..., Iterator[RuntimeVariant | Skipped]]
    on_graphs: Callable[..., Runner]
    engines: Asking
    naming: Callable[[str], str] = str

    @classmethod
    def of(cls, artifact: Artifact) -> "Verification":
        """The verification of an artifact's family."""
        family = family_called(artifact.manifest.family)
        assert family is not None  # its manifest was read
        verification: Verification = resolve(family.verification)
        return verification

    @classmethod
    def of_graphs(
        cls, reference: Callable[..., TorchReference[Any]], runner: Callable[..., Runner]
    ) -> "Verification":
        """The verification of a CLIP or a BLIP; ``runner`` runs their named graphs in every runtime."""

        def on_graphs(artifact: EncoderArtifact, load: LoadGraph) -> Runner:
            return runner(artifact.manifest, NumpyGraphs(artifact, load))

        return cls(
            reference, partial(graph_variants, runner=runner), on_graphs, asking_graphs(runner)
        )

    def reference(
        self, run: RunDirectory, artifact: Artifact, device: str, model: str | None = None
    ) -> TorchReference[Any]:
        """Load the torch models of a run; ``model`` is where the dense one is now, if it was moved.

        Raises:
            CompExportError: the dense model is gone, or has other weights than the run's.
        """
        dense = dense_model_of(run, model)
        return self.load(dense, run.checkpoint, run.load_plan(), artifact, device)
