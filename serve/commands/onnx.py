"""``comp-export onnx``: export a run to ONNX artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comp.commands.options import CommonOptions, common_options, data_options, run_argument
from comp.utils.console import print_json, print_table, say
from comp.utils.progress import working

if TYPE_CHECKING:
    from export.artifact.manifest import Flavour, Precision, Rounding

MIB = 2**20
EXAMPLES = 64  # to calibrate on


@click.command(name="onnx")
@run_argument
@click.option(
    "--flavour",
    type=click.Choice(["onnxruntime", "standard"]),
    default="onnxruntime",
    show_default=True,
    help="onnxruntime: its fused operators; standard: ONNX operators only (TensorRT, OpenVINO).",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "bfloat16", "int8", "int4"]),
    default="float32",
    show_default=True,
    help="Precision of weights, computation and caches; bfloat16 for OpenVINO and TensorRT (flavour "
    "standard). int8 and int4 apply to weights, for CPUs.",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "calibrated"]),
    default="nearest",
    show_default=True,
    help="Rounding of int4: to the nearest, or calibrated by NNCF on examples (extra calibrate).",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    default=EXAMPLES,
    show_default=True,
    help="Number of examples to calibrate on.",
)
@data_options(
    "Your own examples to calibrate on, or to check float16 on: LLaVA-Instruct, VQAv2, Karpathy's JSON, "
    "NLVR2, or JSONL [default: EmojiScenes, train split]."
)
@click.option(
    "--dense/--no-dense",
    default=True,
    show_default=True,
    help="Also export the dense model, the baseline.",
)
@click.option("--model", help="The dense model, if it is no longer where RUN names it.")
@click.option("--force", is_flag=True, help="Replace existing artifacts.")
@click.option("--resume", is_flag=True, help="Keep complete artifacts, and write the missing ones.")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare the export with transformers, on pictures and words, before it is moved into place.",
)
@common_options
def command(
    run: Path,
    flavour: "Flavour",
    precision: "Precision",
    rounding: "Rounding",
    examples: int,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    dense: bool,
    model: str | None,
    force: bool,
    resume: bool,
    check: bool,
    options: CommonOptions,
) -> None:
    """Export RUN to ONNX: its slim checkpoint and, as the baseline, the dense model.

    Each artifact is compared with transformers on a few pictures and texts, for at most a minute; an
    artifact that differs is not exported. verify compares more.

    The defaults are written to onnx/ and onnx-dense/ of the run. Another flavour or precision is
    appended to the name: onnx-standard/, onnx-dense-standard/, onnx-float16/, onnx-standard-float16/.
    For float16 the largest activations are measured first: the parts of a LLaVA's decoder that exceed
    float16 stay in float32, other parts that do are reported as a warning.
    """
    from export.api import onnx

    models = "the compressed and the dense model" if dense else "the compressed model"
    opening = f"onnx: {run}: {models}, {flavour}, {precision}"
    opening += "; comparing each with transformers takes up to a minute" if check else ""
    with working(opening, options.json) as started:
        exported = onnx(
            run,
            precision=precision,
            flavour=flavour,
            rounding=rounding,
            examples=examples,
            data=data,
            images=images,
            follow_links=follow_links,
            dense=dense,
            model=model,
            force=force,
            resume=resume,
            check=check,
            started=started,
        )
    for warning in exported.warnings:
        say(warning)
    result: dict[str, Any] = {
        "run": str(exported.run.path),
        "flavour": flavour,
        "precision": precision,
        "rounding": exported.rounding,
        "kept": list(exported.kept),
        "files": [
            str(exported.directories[which] / entry.name)
            for which, manifest in exported.manifests.items()
            for entry in manifest.files
        ],
        "artifacts": {
            which: {
                "directory": str(exported.directories[which]),
                "bytes": manifest.size_bytes,
                "params": manifest.params,
                "macs": None if manifest.macs is None else manifest.macs.artifact,
                "activations": manifest.activations and manifest.activations.model_dump(),
            }
            for which, manifest in exported.manifests.items()
        },
    }
    if options.json:
        print_json(result)
        return
    rows = [
        (
            which,
            exported.directories[which].name,
            f"{manifest.size_bytes / MIB:.1f} MiB",
            f"{manifest.params / 1e6:.2f} M",
            "" if manifest.macs is None else f"{manifest.macs.artifact / 1e9:.3f}",
        )
        for which, manifest in exported.manifests.items()
    ]
    columns = ("artifact", "directory", "size", "parameters", "GMACs a prompt")
    print_table("", columns, rows, numbers_from=2)
    say(f"verify it with `comp-export verify {run}`")
