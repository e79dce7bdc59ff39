"""Measure a LLaVA dense and compressed in several runtimes in one run.

    python benchmarks/llava_speed.py --work DIR --out benchmarks/results/gpu-llava-7b.json
    python benchmarks/llava_speed.py --device cpu --shape llava-s --tower --work DIR --out FILE

Random weights, batch 1, greedy, a new image in every round. llava-7b takes about 100 GB of disk for all
contestants, 45 GB with ``--discard``. ``--prepare`` makes the files and stops. ``--shape tiny`` runs
everything on a small model.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from comp.checkpoints.llava_shape import ModelShape
from comp.errors import CompExportError
from comp.flops.llava import llava_params
from comp.plan import PruningPlan, Workload
from comp.utils.console import print_table, say
from comp.utils.files import write_text
from comp.utils.machine import usable_cores
from contestants import CONTESTANTS, GENAI, LLAMACPP, ON_CPUS, ORTGENAI
from export.tensorrt.limits import Limits
from fresh import in_fresh_process, peak_of
from plan_shape import find_plan
from random_llava import SHAPES, config_of, prompt_of
from rivals.base import BenchSettings, Stage
from rounds import RoundOptions, measure, picture, prepare
from run_files import BOTH, RunFiles
from speed_report import (
    COLUMNS,
    TARGET_SHARE,
    contestants_report,
    describe_device,
    describe_versions,
    model_report,
    table_rows,
)

ON_GPU = ("ort", "tensorrt", "torch", "torch-compile")
ON_CPU = ("ort", "torch", "torch-compile", "torch-bf16", *ON_CPUS, *GENAI, *LLAMACPP, *ORTGENAI)
HALF_BYTES = 2
REFERENCE = "torch"  # the contestant whose answers are the reference


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description="TTFT and TPOT of a LLaVA, dense and compressed, in several runtimes."
    )
    add = options.add_argument
    add("--shape", choices=SHAPES, default="llava-7b")
    add("--rate", type=float, default=0.62, help="share of multiply-accumulates to remove")
    add("--tower", action="store_true", help="also cut the vision tower")
    add("--work", type=Path, default=Path("benchmarks/work"), help="checkpoints and artifacts")
    add("--out", type=Path, required=True, help="JSON file to write")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--contestants", help=f"comma-separated: {', '.join(CONTESTANTS)} [all for the device]")
    add("--repeats", type=int, default=30)
    add("--warmup", type=int, default=5)
    add("--text-tokens", type=int, default=64)
    add("--new-tokens", type=int, default=32)
    add("--picture", help="WIDTHxHEIGHT of the images [the model's own size]")
    add("--threads", type=int, help="on the CPU [all usable cores]")
    add("--seed", type=int, default=0, help="of weights, plan, prompt and images")
    add("--engine-weights", choices=("embedded", "streamed", "stripped"), default="embedded")
    add("--prepare", action="store_true", help="make checkpoints, artifacts and engines, and stop")
    add("--fresh", action="store_true", help="make artifacts and engines again")
    add("--genai", type=Path, help="models for OpenVINO GenAI: benchmarks/rivals/genai.py")
    add("--memory", action="store_true", help="also measure peak memory, each in a fresh process")
    add("--discard", action="store_true", help="remove files after loading, for small disks")
    return options


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Measure, write the report, print the table; return the report, or ``None`` with ``--prepare``.

    Raises:
        CompExportError: no GPU for ``--device cuda``, an option out of range, or a full disk.
    """
    names = _contestants(args)
    _check(args)
    shape = ModelShape.from_config(config_of(args.shape))
    workload = Workload(image_tokens=shape.image_tokens, text_tokens=args.text_tokens)
    plan = find_plan(shape, args.rate, workload, args.shape, args.tower, args.seed)
    options = RoundOptions(args.warmup, args.repeats, args.seed, _picture(args, shape))
    question = BenchSettings(
        prompt_of(args.text_tokens, args.seed),
        args.new_tokens,
        args.device,
        args.threads or usable_cores(),
    )
    files = _files(args, plan)
    if args.prepare:
        prepare(names, files)
        return None
    started = time.perf_counter()
    about = _about(args, shape, files, options, question)
    records = measure(
        names,
        lambda: Stage(files, question),
        options,
        workload.image_tokens + workload.text_tokens,
        _memory(args, shape, plan),
    )
    reference = REFERENCE if REFERENCE in records else None
    rows = contestants_report(records, about["flops_ratio"], reference)
    if args.memory:
        _add_memory(rows, files, question, picture(options, 0))
    about["target"]["met_by"] = [name for name, row in rows.items() if row["target_met"]]
    minutes = (time.perf_counter() - started) / 60
    report = {**about, "contestants": rows, "minutes": minutes}
    write_text(args.out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    title = (
        f"{args.shape} on {about['device']['name']}, {files.precision}, {workload.image_tokens} + "
        f"{workload.text_tokens} prompt tokens, {args.new_tokens} new ones; rate {plan.rate:.3f}, "
        f"FLOPs {about['flops_ratio']:.2f}×"
    )
    print_table(title, COLUMNS, table_rows(rows), numbers_from=2)
    say(f"wrote {args.out}")
    return report


def _add_memory(
    rows: dict[str, Any], files: RunFiles, question: BenchSettings, image: Image.Image
) -> None:
    """Add the peak memory of each measured model."""
    for name, row in rows.items():
        for which in BOTH:
            if row[which]:
                say(f"memory of {name}, {which}")
                row[which]["peak_rss_mb"] = in_fresh_process(
                    peak_of, name, which, files, question, image
                )


def _about(
    args: argparse.Namespace,
    shape: ModelShape,
    files: RunFiles,
    options: RoundOptions,
    question: BenchSettings,
) -> dict[str, Any]:
    """The report's fields that are known before measuring."""
    model = model_report(shape, files.plan)
    return {
        "shape": args.shape,
        "rate_asked": args.rate,
        **model,
        "precision": files.precision,
        "workload": {
            **files.plan.workload.model_dump(),
            "new_tokens": args.new_tokens,
            "batch": 1,
            "images": "a new one every round, the same for all contestants",
            "picture": list(options.picture),
            "warmup": args.warmup,
            "repeats": args.repeats,
            "seed": args.seed,
        },
        "device": describe_device(args.device),
        "threads": question.threads,
        "versions": describe_versions(),
        "target": {
            "measure": "ttft_ms",
            "share_of_flops": TARGET_SHARE,
            "speed_up": TARGET_SHARE * model["flops_ratio"],
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if anything was measured, or with ``--prepare``."""
    args = parser().parse_args(arguments)
    try:
        report = run(args)
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    if report is None:
        return 0
    rows = report["contestants"].values()
    return 0 if any(row["dense"] or row["compressed"] for row in rows) else 1


def _contestants(args: argparse.Namespace) -> list[str]:
    given = args.contestants or ",".join(ON_GPU if args.device == "cuda" else ON_CPU)
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown or not names:
        raise CompExportError(
            f"--contestants {given!r}: choose from {', '.join(CONTESTANTS)}, by comma"
        )
    return names


def _check(args: argparse.Namespace) -> None:
    for name, least in (("repeats", 1), ("warmup", 0), ("new_tokens", 2), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise CompExportError(f"--{name.replace('_', '-')} {value}: choose {least} or more")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise CompExportError(
                f"--device cuda: torch {torch.__version__} finds no NVIDIA GPU here; run it on a "
                "machine with one, or try the script with --device cpu --shape tiny"
            )


def _picture(args: argparse.Namespace, shape: ModelShape) -> tuple[int, int]:
    if args.picture is None:
        return shape.vision.image_size, shape.vision.image_size
    width, _, height = args.picture.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise CompExportError(f"--picture {args.picture!r}: write it as 640x480")
    return int(width), int(height)


def _files(args: argparse.Namespace, plan: PruningPlan) -> RunFiles:
    return RunFiles(
        work=args.work,
        shape=args.shape,
        plan=plan,
        # CPU kernels compute in single precision.
        precision="float16" if args.device == "cuda" else "float32",
        limits=Limits(
            max_batch=1,
            images=1,
            max_prompt=args.text_tokens,
            max_new_tokens=args.new_tokens,
        ),
        seed=args.seed,
        engine_weights=args.engine_weights,
        fresh=args.fresh,
        discard=args.discard,
        genai=args.genai,
    )


def _memory(
    args: argparse.Namespace, shape: ModelShape, plan: PruningPlan
) -> tuple[int, int] | None:
    """Bytes of both models' weights, and free bytes on the GPU."""
    if args.device != "cuda":
        return None
    import torch

    weights = sum(sum(llava_params(s).values()) for s in (shape, shape.with_plan(plan)))
    return weights * HALF_BYTES, torch.cuda.mem_get_info()[0]


if __name__ == "__main__":
    sys.exit(main())
