"""The files that contestants load, made when needed and kept for later runs."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from comp.errors import CompExportError
from comp.plan import PruningPlan
from comp.utils.console import say
from export.artifact.manifest import Flavour, Precision
from export.exporter import Origin, artifact_directory, export_artifact
from export.graph.builder import Target
from export.tensorrt.build.capability import choose_capabilities
from export.tensorrt.build.directory import build_engines
from export.tensorrt.build.engine import BuildOptions, Weights
from export.tensorrt.gpu import gpu_capability, why_no_gpu
from export.tensorrt.library import find_tensorrt
from export.tensorrt.limits import Limits
from export.weights.slim import write_slim_checkpoint
from random_llava import write_random_llava

Which = Literal["dense", "compressed"]
BOTH: tuple[Which, Which] = ("dense", "compressed")


@dataclass
class RunFiles:
    """The files of one shape, seed and rate, below one directory.

    Existing files are reused: each directory is written atomically. ``fresh`` makes artifacts and
    engines again; ``discard`` removes the files that a contestant was loaded from, for disks that
    cannot hold all variants of a large model at once.

    Attributes:
        work: directory of all files.
        shape: name of the model's shape.
        plan: plan of the compressed model.
        precision: precision of artifacts and engines.
        limits: limits of the one request that engines are built for.
        genai: models for ``benchmarks/rivals/genai.py``, which the user makes.
    """

    work: Path
    shape: str
    plan: PruningPlan
    precision: Precision
    limits: Limits
    seed: int = 0
    engine_weights: Weights = "embedded"
    fresh: bool = False
    discard: bool = False
    genai: Path | None = None
    _made: set[Path] = field(default_factory=set, init=False)

    @property
    def model(self) -> Path:
        """The directory of the dense model, and above all others."""
        return self.work / f"{self.shape}-seed{self.seed}"

    @property
    def run(self) -> Path:
        """The directory of the compressed model, named by its plan, not by the options that led to it."""
        digest = hashlib.sha256(self.plan.model_dump_json().encode()).hexdigest()
        return self.model / f"rate-{self.plan.rate:.3f}-{digest[:8]}"

    def checkpoint(self, which: Which = "dense") -> Path:
        """The random checkpoint, or the slim one cut from it."""
        dense = self.model / "checkpoint"
        if not dense.exists():
            say(f"writing the checkpoint {dense}")
            write_random_llava(self.shape, dense, self.seed)
        if which == "dense":
            return dense
        slim = self.run / "slim"
        if self._wanted(slim):
            say(f"writing the slim checkpoint {slim}")
            write_slim_checkpoint(dense, self.plan, slim)
        return slim

    def artifact(self, which: Which, flavour: Flavour, precision: Precision | None = None) -> Path:
        """The ONNX artifact; ``precision`` overrides the run's."""
        target = Target(flavour, precision or self.precision)
        out = artifact_directory(self._place(which), which == "dense", target)
        if self._wanted(out):
            say(f"exporting {out}")
            origin = Origin(self.shape, workload=self.plan.workload)
            plan = None
            if which == "compressed":
                origin, plan = Origin.of_plan(self.plan), self.plan
            export_artifact(self.checkpoint(), out, origin, target, plan)
        return out

    def engines(self, which: Which) -> Path:
        """TensorRT engines, built on this machine's GPU.

        Raises:
            CompExportError: no TensorRT, or no GPU.
        """
        gpu = gpu_capability()
        if gpu is None:
            raise CompExportError(f"native TensorRT needs an NVIDIA GPU, and {why_no_gpu()}")
        tensorrt = find_tensorrt()
        # Next to their artifact, where stripped weights are read from.
        sizes = f"{self.limits.max_prompt}-{self.limits.max_new_tokens}"
        name = f"tensorrt-{which}-{self.precision}-{self.engine_weights}-{sizes}"
        out = self._place(which) / name
        if self._wanted(out):
            artifact = self.artifact(which, "standard")
            say(f"building engines in {out}")
            options = BuildOptions(
                capabilities=choose_capabilities(tensorrt, None, gpu),
                weights=self.engine_weights,
                timing_cache=self.model / "timing.cache",
            )
            build_engines(tensorrt, artifact, out, self.limits, options)
            if self.engine_weights != "stripped":
                self.loaded(artifact)
        return out

    def loaded(self, *directories: Path) -> None:
        """Report that these files were loaded (the dense checkpoint always stays)."""
        for directory in directories if self.discard else ():
            shutil.rmtree(directory, ignore_errors=True)
            self._made.discard(directory)

    def _place(self, which: Which) -> Path:
        return self.model if which == "dense" else self.run

    def _wanted(self, directory: Path) -> bool:
        """Whether a directory must be made now; if so it is recorded as made."""
        if directory.exists() and (not self.fresh or directory in self._made):
            return False
        self._made.add(directory)
        return True
