"""Command ``comp-export inspect``: show a run or an artifact as tables, a run's search as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from comp.commands.inspect_figures import FigureOptions, draw, missing_words, print_numbers
from comp.commands.inspect_manifest import read_shown_manifest
from comp.commands.options import CommonOptions, common_options, data_options, run_argument
from comp.errors import CompExportError
from comp.utils.console import print_json, print_table, say

if TYPE_CHECKING:
    from comp.figures.report import Insight
    from comp.plan import PruningPlan

MANIFEST = "manifest.json"
MIB = 2**20
ARTIFACTS = ("onnx*", "tensorrt*")  # folders of a run


@click.command()
@run_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the figures [RUN/reports; with --figures RUN/figures].",
)
@click.option("--no-figures", is_flag=True, help="Only tables.")
@click.option(
    "--figures",
    is_flag=True,
    help="Also draw the share of each mode, the overlap of deciding and important tokens, and the stability "
    "of ranks; print the numbers. The folder is replaced.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="With --figures: number of examples for the dense model [8].",
)
@data_options("With --figures: file of the examples [default: EmojiScenes, validation split].")
@click.option(
    "--hashes", is_flag=True, help="Also show the SHA-256 of the files; --json always has them."
)
@click.option("--model", help="With --figures: the dense model, if it is no longer where RUN says.")
@common_options
def command(
    run: Path,
    out: Path | None,
    no_figures: bool,
    figures: bool,
    samples: int | None,
    data: Path | None,
    images: Path | None,
    follow_links: bool,
    hashes: bool,
    model: str | None,
    options: CommonOptions,
) -> None:
    """Show RUN, a run or an artifact directory, as tables; draw a run's search as PNG."""
    figure_options = FigureOptions(samples, data, images, follow_links or None, model)
    if not figures:
        figure_options.check_unused()
    if figures and no_figures:
        raise CompExportError("--figures and --no-figures exclude each other: give one of them")
    if (run / MANIFEST).is_file():
        if figures:
            raise CompExportError(f"{run} is an artifact, and --figures needs a run: name the run")
        _show_artifact(run, options.json, hashes)
        return
    from comp.runs import hold, open_run

    opened = open_run(run)
    if out is None and not no_figures:
        hold(opened, "inspect")
    manifest_paths = [path for name in ARTIFACTS for path in opened.path.glob(f"{name}/{MANIFEST}")]
    shown = ShownRun(
        opened.path,
        opened.load_plan(),
        {path.parent: read_shown_manifest(path) for path in sorted(manifest_paths)},
    )
    if figures:
        insight = draw(opened, out, figure_options, options)
        shown = replace(shown, figures=insight.paths, insight=insight)
    elif not no_figures:
        from comp.figures.run_figures import save_figures

        shown = replace(shown, figures=save_figures(opened, out))
    _show_run(shown, options.json, hashes)


@dataclass(frozen=True)
class ShownRun:
    """The contents of a run as ``inspect`` shows them.

    Attributes:
        manifests: manifests of its artifacts, by folder.
        figures: files of the figures drawn.
        insight: with ``--figures``: the numbers, and the reasons for missing figures.
    """

    path: Path
    plan: "PruningPlan"
    manifests: Mapping[Path, Any]
    figures: Sequence[Path] = ()
    insight: "Insight | None" = None


def _show_artifact(folder: Path, as_json: bool, hashes: bool) -> None:
    manifest = read_shown_manifest(folder / MANIFEST)
    if as_json:
        print_json({"artifact": str(folder), "manifest": manifest})
    else:
        _print_manifest(folder, manifest, hashes)


def _show_run(shown: ShownRun, as_json: bool, hashes: bool) -> None:
    """Print a run.

    Raises:
        CompExportError: some figures could not be drawn.
    """
    if as_json:
        print_json(_report(shown))
    else:
        _print_run(shown, hashes)
    if shown.insight is not None and shown.insight.missing:
        raise CompExportError(missing_words(shown.insight))


def _report(shown: ShownRun) -> dict[str, Any]:
    report: dict[str, Any] = {
        "run": str(shown.path),
        "plan": _summary(shown.plan),
        "artifacts": {folder.name: each for folder, each in shown.manifests.items()},
        "figures": [str(path) for path in shown.figures],
    }
    if shown.insight is not None:
        report |= {"numbers": shown.insight.numbers, "missing": shown.insight.missing}
    return report


def _print_run(shown: ShownRun, hashes: bool) -> None:
    _print_plan(shown.path, shown.plan)
    for folder, manifest in shown.manifests.items():
        _print_manifest(folder, manifest, hashes)
    insight = shown.insight
    if insight is not None:
        print_numbers(insight, shown.plan.rate_of)
    for path in shown.figures:
        say(f"figure: {path}")
    if insight is not None:
        say(f"numbers: {insight.record}")


def _summary(plan: "PruningPlan") -> dict[str, Any]:
    from comp.figures.run_figures import tokens_by_block

    counts = tokens_by_block(plan).values()
    vision, text = ([each[kind] for each in counts if each[kind]] for kind in (0, 1))
    return {
        "model": plan.model,
        "family": plan.family,
        "task": plan.task,
        "method": plan.method,
        "rate": plan.rate,
        "rate_of": plan.rate_of,
        "macs": plan.macs,
        "macs_dense": plan.macs_dense,
        "milliseconds": plan.milliseconds,
        "milliseconds_dense": plan.milliseconds_dense,
        "workload": plan.workload.model_dump(),
        "blocks": [
            {
                "part": block.part,
                "index": block.index,
                "heads": len(block.kept_heads),
                "heads_dense": block.num_attention_heads,
                "channels": len(block.kept_channels),
                "channels_dense": block.intermediate_size,
            }
            for block in plan.blocks
        ],
        "drops": [drop.model_dump() for drop in plan.drops],
        "image_selection": plan.image_selection and plan.image_selection.model_dump(),
        "tokens_per_layer": {"vision": vision, "text": text},
    }


def _time_saved(plan: "PruningPlan") -> str:
    if plan.milliseconds is None or not plan.milliseconds_dense:
        return ""
    saved = 1 - plan.milliseconds / plan.milliseconds_dense
    return f", {saved:.1%} of {plan.milliseconds_dense:,.2f} ms predicted"


def _print_plan(path: Path, plan: "PruningPlan") -> None:
    from comp.figures.run_figures import tokens_by_block

    tokens = tokens_by_block(plan)
    rows = []
    for block in plan.blocks:
        vision, text = tokens.get((block.part, block.index), (0, 0))
        rows.append(
            (
                f"{block.part} {block.index}",
                f"{len(block.kept_heads)} of {block.num_attention_heads}",
                f"{len(block.kept_channels)} of {block.intermediate_size}"
                if block.intermediate_size
                else "",
                f"{vision} + {text}" if vision + text else "",
            )
        )
    load = plan.workload
    print_table(
        f"{path}: {plan.model}, {plan.method}, {plan.flops_rate:.1%} of {plan.macs_dense / 1e9:,.3f} "
        f"GMACs removed{_time_saved(plan)} ({load.image_tokens} image + {load.text_tokens} text tokens)",
        ("block", "heads", "FFN channels", "tokens (vision + text)"),
        rows,
    )
    chosen = plan.image_selection
    if chosen is not None:
        print_table(
            "Image tokens after the vision tower",
            ("tokens of an image", "kept", "merged from the others"),
            [(str(chosen.tower_tokens), str(chosen.dominant), str(chosen.contextual))],
        )
    if plan.drops:
        print_table(
            "Tokens dropped",
            ("after block", "vision tokens kept", "text tokens kept"),
            (
                (
                    f"{d.part} {d.after_layer}",
                    f"{d.vision_keep_ratio:.1%}",
                    f"{d.text_keep_ratio:.1%}",
                )
                for d in plan.drops
            ),
        )


def _print_manifest(folder: Path, manifest: dict[str, Any], hashes: bool) -> None:
    engines = manifest.get("kind") == "tensorrt"
    words = _engine_words(manifest) if engines else []
    described = manifest["artifact"] if engines else manifest
    keys = ("precision", "model") if engines else ("flavour", "precision", "model")
    words += [str(described[key]) for key in keys if key in described]
    verified = manifest.get("verified")
    ok = verified and verified.get("ok")
    state = "not verified" if verified is None else "verified" if ok else "verify FAILED"
    size = sum(int(entry["bytes"]) for entry in manifest["files"])
    print_table(
        f"{folder}: {', '.join(words)}; {size / MIB:,.1f} MiB; {state}",
        ("file", "MiB", *(["SHA-256"] if hashes else [])),
        (
            (
                entry["name"],
                f"{entry['bytes'] / MIB:,.3f}",
                *([entry["sha256"]] if hashes else []),
            )
            for entry in manifest["files"]
        ),
    )
    if engines:
        _print_engines(manifest)


def _engine_words(manifest: dict[str, Any]) -> list[str]:
    return [
        f"{manifest['module']} {manifest['module_version']}",
        "compute capability " + " ".join(manifest["compute_capabilities"]),
        f"weights {manifest['weights']}",
    ]


def _print_engines(manifest: dict[str, Any]) -> None:
    """Print the profiles of each engine, and the state of its attention and caches."""
    rows = []
    for name, engine in manifest["engines"].items():
        for profile in engine["profiles"]:
            for tensor, shapes in profile["shapes"].items():
                if not tensor.startswith("past_key_values."):
                    rows.append(
                        (name, profile["name"], tensor, *("×".join(map(str, s)) for s in shapes))
                    )
    sizes = ("engine", "profile", "input", "smallest", "usual", "largest")
    print_table("Profiles", sizes, rows, numbers_from=3)
    blocks = [
        (name, block["block"], block["attention"], block["caches_in_place"])
        for name, engine in manifest["engines"].items()
        for block in engine["blocks"]
    ]
    forms = ("engine", "block", "attention", "caches in place")
    capacities = ", ".join(map(str, manifest["cache_capacities"]))
    print_table(
        f"Blocks (places in the caches of each segment: {capacities})",
        forms,
        blocks,
        numbers_from=3,
    )
