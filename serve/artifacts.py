"""Find the dense and the compressed artifact of a run, in one of their variants."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from comp.errors import CompExportError
from comp.runs import RunDirectory, open_run
from export.artifact.load import kind_of, read_manifest
from export.artifact.manifest import MANIFEST_NAME, Flavour, Manifest, Precision
from export.tensorrt.manifest import EngineManifest, read_engine_manifest
from export.tensorrt.names import engine_directory
from serve.backends.base import BackendName, ProviderChoice

Which = Literal["dense", "compressed"]
BOTH: tuple[Which, Which] = ("dense", "compressed")
_USUAL_PRECISION: dict[BackendName, Precision] = {
    "tensorrt": "float16",
    "openvino-bfloat16": "int8",
}


@dataclass(frozen=True)
class ArtifactVariant:
    """One export of a run, and the backend that runs it; a run may hold several exports.

    Attributes:
        flavour, precision: those of the graphs, or of the graphs that the engines were built from.
        backend: ``tensorrt`` runs engines, the others run graphs.
        provider: ONNX Runtime's execution provider; ``auto`` follows from the device.
    """

    flavour: Flavour = "onnxruntime"
    precision: Precision = "float32"
    backend: BackendName = "onnxruntime"
    provider: ProviderChoice = "auto"

    @classmethod
    def choose(
        cls,
        backend: BackendName = "onnxruntime",
        provider: ProviderChoice = "auto",
        flavour: Flavour | None = None,
        precision: Precision | None = None,
    ) -> "ArtifactVariant":
        """Complete a user's choice to a variant.

        OpenVINO and TensorRT take the standard flavour. By default engines are in float16, and weights have
        8 bits if bfloat16 is to be computed with integer weights.

        Raises:
            CompExportError: the options contradict each other.
        """
        if backend == "tensorrt" and precision in ("int8", "int4"):
            raise CompExportError(
                f"--backend tensorrt with --precision {precision}: integer weights are for CPUs; engines "
                "are float16, bfloat16 or float32"
            )
        if backend != "onnxruntime":
            if provider != "auto" or flavour == "onnxruntime":
                word = f"--provider {provider}" if provider != "auto" else f"--flavour {flavour}"
                what = "engines" if backend == "tensorrt" else "graphs of the standard flavour"
                raise CompExportError(
                    f"--backend {backend} runs {what}, {word} is for ONNX Runtime: leave one out"
                )
            return cls("standard", precision or _USUAL_PRECISION.get(backend, "float32"), backend)
        usual: Flavour = "standard" if "tensorrt" in provider else "onnxruntime"
        return cls(flavour or usual, precision or "float32", backend, provider)

    @classmethod
    def parse(cls, text: str) -> "ArtifactVariant":
        """Parse ``onnxruntime[:PROVIDER[:PRECISION]]``, or another backend such as ``openvino[:PRECISION]``.

        Raises:
            CompExportError: a word is none of these; names it.
        """
        backend, *words = text.split(":")
        known: list[tuple[str, ...]] = [get_args(Precision)]
        if backend == "onnxruntime":
            known.insert(0, get_args(ProviderChoice))
        elif backend not in get_args(BackendName):
            known = []
        chosen: list[Any] = []
        for word, choices in zip(words, known, strict=False):
            if word in choices:
                chosen.append(word)
        if not known or len(chosen) != len(words):
            raise CompExportError(
                f"{text!r} is no backend: write onnxruntime, onnxruntime:PROVIDER or "
                f"onnxruntime:PROVIDER:PRECISION (providers {', '.join(get_args(ProviderChoice))}), "
                f"{', '.join(get_args(BackendName)[1:])}, or one of these with :PRECISION (precisions "
                f"{', '.join(get_args(Precision))})"
            )
        if backend != "onnxruntime":
            return cls.choose(cast(BackendName, backend), precision=chosen[0] if chosen else None)
        provider, precision = [*chosen, None, None][:2]
        return cls.choose("onnxruntime", provider or "auto", precision=precision)

    def directory(self, run: Path, which: Which) -> Path:
        """The directory in a run: ``onnx`` and ``onnx-dense``, ``tensorrt`` and ``tensorrt-dense``.

        Other settings than the default are appended to the name.
        """
        if self.backend == "tensorrt":
            return engine_directory(run, which == "dense", self.precision)
        return run / f"{'onnx-dense' if which == 'dense' else 'onnx'}{self._graph_suffix}"

    @property
    def _graph_suffix(self) -> str:
        flavour = f"-{self.flavour}" if self.flavour != "onnxruntime" else ""
        return flavour + (f"-{self.precision}" if self.precision != "float32" else "")

    @property
    def suffix(self) -> str:
        """The suffix of report names; empty for the default variant."""
        if self.backend == "tensorrt":
            return f"-{engine_directory(Path(), dense=False, precision=self.precision).name}"
        if self.backend != "onnxruntime":
            return f"-{self.backend}{self._graph_suffix}"
        provider = f"-{self.provider}" if self.provider not in ("auto", "cpu") else ""
        return provider + self._graph_suffix

    @property
    def label(self) -> str:
        """Name for people, such as ``onnxruntime cuda float16 standard``."""
        words: list[str] = [self.backend]
        if self.provider != "auto":
            words.append(self.provider)
        words.append(self.precision)
        if self.backend == "onnxruntime" and self.flavour != "onnxruntime":
            words.append(self.flavour)
        return " ".join(words)

    @property
    def export_command(self) -> str:
        """The command that exports the variant."""
        if self.backend == "tensorrt":
            precision = f" --precision {self.precision}" if self.precision != "float16" else ""
            return f"comp-export tensorrt {{run}}{precision}"
        words = [f" --flavour {self.flavour}"] if self.flavour != "onnxruntime" else []
        words += [f" --precision {self.precision}"] if self.precision != "float32" else []
        return "comp-export onnx {run}" + "".join(words)


DEFAULT_VARIANT = ArtifactVariant()


def artifact_of(
    run: RunDirectory, which: Which, variant: ArtifactVariant = DEFAULT_VARIANT
) -> Path:
    """Return the directory of one artifact.

    Raises:
        CompExportError: the run has no export in this variant.
    """
    directory = variant.directory(run.path, which)
    if not (directory / MANIFEST_NAME).is_file():
        raise CompExportError(
            f"{run.path} has no {which} artifact ({directory.name}/): "
            f"run `{variant.export_command.format(run=run.path)}`"
        )
    return directory


def artifacts_of(
    path: Path, variant: ArtifactVariant = DEFAULT_VARIANT
) -> tuple[RunDirectory, dict[Which, Path]]:
    """Open a run and return it with the directories of both artifacts."""
    run = open_run(path)
    return run, {which: artifact_of(run, which, variant) for which in BOTH}


def is_verified(directory: Path) -> bool:
    """Whether ``comp-export verify`` passed for exactly these files."""
    manifest: Manifest | EngineManifest
    if kind_of(directory) == "tensorrt":
        manifest = read_engine_manifest(directory)
    else:
        manifest = read_manifest(directory)
    return manifest.verified is not None and manifest.verified.ok


def flops_ratio(dense: Manifest, compressed: Manifest) -> float | None:
    """Multiply-accumulates of the compressed model over those of the dense one (1 - rate).

    ``None`` if a manifest has no count.
    """
    if dense.macs is None or compressed.macs is None:
        return None
    return compressed.macs.artifact / dense.macs.artifact
