"""Exporting: a checkpoint, dense or slim or dense with a plan, becomes an artifact directory."""

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from comp.checkpoints import read_config
from comp.files import writing_directory
from comp.flops import llava_macs
from comp.plan import PruningPlan, Workload
from export.graph.builder import Target
from export.llava import build_graphs
from export.llava_config import FAMILY, LlavaShape, read_llava
from export.manifest import (
    DecoderShape,
    Macs,
    Manifest,
    VisionShape,
    describe_files,
)
from export.processor import (
    TOKENIZER,
    read_image_processing,
    read_prompt_template,
    read_special_tokens,
)
from export.slim import slim_weights
from export.weights import CheckpointWeights, WeightSource

PACKAGES = ("comp-export", "onnx", "onnx-ir", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Origin:
    """What the manifest says of where an artifact came from.

    ``dense_macs`` is the dense model's cost on ``workload`` (by default its own, when it is dense).
    """

    model: str
    method: str | None = None
    rate: float = 0.0
    workload: Workload | None = None
    dense_macs: int | None = None

    @classmethod
    def of_plan(cls, plan: PruningPlan) -> "Origin":
        return cls(plan.model, plan.method, plan.rate, plan.workload, plan.macs_dense)


def export_artifact(
    checkpoint: Path,
    out: Path,
    origin: Origin,
    target: Target | None = None,
    plan: PruningPlan | None = None,
    written: Callable[[str], None] = lambda name: None,
) -> Manifest:
    """Write the artifact of a checkpoint.

    Args:
        checkpoint: a dense checkpoint, or a slim one (which carries its drops).
        out: directory to write; replaced whole when everything is written.
        origin: what to record.
        target: flavour and precision; onnxruntime and float32 by default.
        plan: cut the dense checkpoint by this plan while exporting.
        written: told each graph's name when it is on disk.

    Returns:
        The manifest.

    Raises:
        CompExportError: the checkpoint is not supported or not whole, the plan is of another model,
            the disk is full.
    """
    target = target or Target()
    config = read_config(checkpoint)
    shape = read_llava(checkpoint)
    weights: WeightSource
    if plan is None:
        weights = CheckpointWeights(checkpoint)
    else:
        weights = slim_weights(checkpoint, plan)
        shape = shape.pruned(plan)
    tokens = read_special_tokens(checkpoint, config, shape.image_token_id)
    image_processing = read_image_processing(checkpoint)
    template = read_prompt_template(checkpoint, tokens)
    workload = origin.workload or Workload(image_tokens=shape.sizes.image_tokens, text_tokens=64)
    report = llava_macs(shape.sizes, workload.image_tokens, workload.text_tokens)
    with writing_directory(out) as directory:
        build_graphs(shape, weights, target, directory, written)
        shutil.copyfile(checkpoint / TOKENIZER, directory / TOKENIZER)
        manifest = Manifest(
            family=FAMILY,
            flavour=target.flavour,
            precision=target.precision,
            opset=target.opset,
            model=origin.model,
            method=origin.method,
            rate=origin.rate,
            dense=not shape.sizes.drops and plan is None and origin.method is None,
            decoder=_decoder_shape(shape),
            vision=VisionShape(
                image_size=shape.sizes.image_size,
                patch_size=shape.sizes.patch_size,
                num_channels=shape.sizes.num_channels,
                image_tokens=shape.sizes.image_tokens,
                select_strategy="full" if shape.sizes.keeps_class_token else "default",
            ),
            image_processor=image_processing,
            tokens=tokens,
            prompt_template=template,
            macs=Macs(
                dense=origin.dense_macs or report.macs,
                artifact=report.macs,
                parts={name: part.macs for name, part in report.parts.items()},
                workload=workload,
            ),
            params=report.params,
            versions=_versions(),
            files=describe_files(directory),
        )
        manifest.save(directory)
    return manifest


def artifact_directory(run: Path, dense: bool, target: Target) -> Path:
    """Where ``comp-export onnx`` writes: ``onnx`` and ``onnx-dense`` for the defaults.

    Another flavour or precision is appended: ``onnx-standard``, ``onnx-dense-float16``,
    ``onnx-standard-float16``.
    """
    default = Target()
    words = ["onnx", *(["dense"] if dense else [])]
    if target.flavour != default.flavour:
        words.append(target.flavour)
    if target.precision != default.precision:
        words.append(target.precision)
    return run / "-".join(words)


def _decoder_shape(shape: LlavaShape) -> DecoderShape:
    sizes = shape.sizes
    return DecoderShape(
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        head_dim=sizes.head_dim,
        num_attention_heads=tuple(groups * sizes.group_size for groups in sizes.kv_heads),
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=sizes.channels,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        drops=sizes.drops,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree, or an optional package
            continue
    return found
