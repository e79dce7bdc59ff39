"""Export a checkpoint (dense, slim, or dense with a plan) to an artifact directory."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from comp.checkpoints.locate import read_config
from comp.errors import CompExportError
from comp.plan import PruningPlan, Workload
from comp.registry.code import resolve
from comp.registry.families import FAMILIES
from comp.registry.families import family_of as registered_family
from comp.registry.family import Family
from comp.utils.files import writing_directory
from export.artifact.manifest import (
    TOKENIZER,
    Activations,
    Macs,
    Manifest,
    Precision,
    describe_files,
)
from export.configs.processor import image_processing_for
from export.configs.tokenizer import read_tokenizer
from export.families.contribution import FamilyExport
from export.graph.builder import Target

BYTES_OF: dict[Precision, float] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "int4": 0.5,
}
PACKAGES = ("comp-export", "onnx", "onnx-ir", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Origin:
    """The origin of an artifact, as its manifest records it.

    ``dense_macs`` is the dense model's cost on ``workload`` (default: the artifact's own).
    """

    model: str
    method: str | None = None
    rate: float = 0.0
    workload: Workload | None = None
    dense_macs: int | None = None

    @classmethod
    def of_plan(cls, plan: PruningPlan) -> "Origin":
        return cls(plan.model, plan.method, plan.flops_rate, plan.workload, plan.macs_dense)


def export_artifact(
    checkpoint: Path,
    out: Path,
    origin: Origin,
    target: Target | None = None,
    plan: PruningPlan | None = None,
    written: Callable[[str], None] = lambda name: None,
    check: Callable[[Path], None] = lambda directory: None,
    activations: Activations | None = None,
) -> Manifest:
    """Write the artifact of a checkpoint.

    Args:
        checkpoint: a dense checkpoint, or a slim one (which carries its drops).
        out: directory to write; replaced as a whole once everything is written.
        origin: recorded in the manifest.
        target: flavour and precision; onnxruntime and float32 by default.
        plan: cut the dense checkpoint by this plan while exporting.
        written: called with each graph's name when it is on disk.
        check: called with the complete directory before it is moved into place; raises to refuse it.
        activations: the measurements that ``target.wide`` follows from; recorded.

    Returns:
        The manifest.

    Raises:
        CompExportError: the checkpoint is unsupported or incomplete, the plan is of another model,
            the disk is full.
    """
    target = target or Target()
    config = read_config(checkpoint)
    family = family_of(config, checkpoint)
    contribution: FamilyExport = resolve(family.export)(
        checkpoint, config, target, plan, origin.workload
    )
    image_processing = image_processing_for(checkpoint, contribution.fields["vision"].image_size)
    tokenizer = read_tokenizer(checkpoint)
    needed = int(contribution.params * BYTES_OF[target.precision])  # the weights alone
    with writing_directory(out, needed) as directory:
        contribution.build(directory, written)
        tokenizer.write(directory / TOKENIZER)
        total = sum(contribution.macs.values())
        fields = contribution.fields | {
            "family": family.name,
            "flavour": target.flavour,
            "precision": target.precision,
            "rounding": target.rounding,
            "opset": target.opset,
            "model": origin.model,
            "method": origin.method,
            "rate": origin.rate,
            "dense": not contribution.drops and plan is None and origin.method is None,
            "image_processor": image_processing,
            "text_processing": tokenizer.processing,
            "macs": Macs(
                dense=origin.dense_macs or total,
                artifact=total,
                parts=contribution.macs,
                workload=contribution.workload,
            ),
            "params": contribution.params,
            "activations": activations,
            "versions": _versions(),
            "files": describe_files(directory),
        }
        manifest = contribution.manifest.model_validate(fields)
        manifest.save(directory)
        check(directory)
    return manifest


def graphs_to_write(checkpoint: Path, target: Target) -> tuple[str, ...]:
    """Names of the graphs that an export of a checkpoint writes.

    Raises:
        CompExportError: as for ``export_artifact``.
    """
    config = read_config(checkpoint)
    family = family_of(config, checkpoint)
    contribution: FamilyExport = resolve(family.export)(checkpoint, config, target, None, None)
    return contribution.graphs


def family_of(config: dict[str, Any], checkpoint: Path) -> Family:
    """The family of a checkpoint that can be exported.

    Raises:
        CompExportError: it cannot be exported.
    """
    kind = config.get("model_type")
    family = registered_family(kind)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise CompExportError(f"{checkpoint}: model_type is {kind!r}: exported are {known}")
    return family


def artifact_directory(run: Path, dense: bool, target: Target) -> Path:
    """The directory that ``comp-export onnx`` writes: ``onnx`` and ``onnx-dense`` for the defaults.

    Other flavours and precisions are appended: ``onnx-standard``, ``onnx-dense-float16``,
    ``onnx-standard-float16``.
    """
    default = Target()
    words = ["onnx", *(["dense"] if dense else [])]
    if target.flavour != default.flavour:
        words.append(target.flavour)
    if target.precision != default.precision:
        words.append(target.precision)
    return run / "-".join(words)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree, or an optional package
            continue
    return versions
