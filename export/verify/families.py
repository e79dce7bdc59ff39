"""What the families have in common for whoever asks their artifacts: ``verify``, and calibration."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from comp.checkpoints.dense_model import dense_model_of
from comp.registry import family_called, resolve
from comp.runs import RunDirectory
from export.artifact.encoder_manifest import EncoderArtifact
from export.artifact.manifest import Artifact
from export.onnxruntime.graph import LoadGraph
from export.onnxruntime.named_graphs import NumpyGraphs
from export.tensorrt.manifest import Engines
from export.verify.compare import Runner
from export.verify.encoder_runtimes import graph_forms
from export.verify.interface import RuntimeVariant, Skipped, TorchReference
from export.verify.tensorrt import Asking, asking_graphs, engine_form


@dataclass(frozen=True)
class Verification:
    """How the artifacts of a family are asked, in torch and by whatever runs their graphs.

    Attributes:
        load: the torch models of a run.
        forms: of an artifact.
        on_graphs: asks the graphs of an artifact that a function loads.
        engines: asks engines.
        naming: gives the artifact's name of a tensor of torch's.
    """

    load: Callable[..., TorchReference]
    forms: Callable[..., Iterator[RuntimeVariant | Skipped]]
    on_graphs: Callable[..., Runner]
    engines: Asking
    naming: Callable[[str], str] = str

    @classmethod
    def of(cls, artifact: Artifact) -> "Verification":
        """The verification of an artifact's family."""
        family = family_called(artifact.manifest.family)
        assert family is not None  # whose manifest was read
        found: Verification = resolve(family.verification)
        return found

    @classmethod
    def of_graphs(
        cls, side: Callable[..., TorchReference], runner: Callable[..., Runner]
    ) -> "Verification":
        """Of a CLIP or a BLIP, whose named graphs ``runner`` asks in every runtime."""

        def on_graphs(artifact: EncoderArtifact, load: LoadGraph) -> Runner:
            return runner(artifact.manifest, NumpyGraphs(artifact, load))

        return cls(side, partial(graph_forms, runner=runner), on_graphs, asking_graphs(runner))

    def side(
        self, run: RunDirectory, artifact: Artifact, device: str, model: str | None = None
    ) -> TorchReference:
        """The torch models of a run; ``model`` is where the dense one is now, if it was moved.

        Raises:
            CompExportError: the dense model is not to be had, or has other weights than the run's.
        """
        dense = dense_model_of(run, model)
        return self.load(dense, run.checkpoint, run.load_plan(), artifact, device)

    def slim_side(self, run: RunDirectory, artifact: Artifact, device: str) -> TorchReference:
        """The slim model of a run whose dense one is gone."""
        return self.load(None, run.checkpoint, run.load_plan(), artifact, device)

    def all_forms(
        self, artifacts: list[Artifact], engines: list[Engines]
    ) -> Iterator[RuntimeVariant | Skipped]:
        """Every form of every artifact, the engines' last."""
        for artifact in artifacts:
            yield from self.forms(artifact)
        for each in engines:
            yield engine_form(each, self.engines)
