"""Measure a CLIP or a BLIP of full shape dense and compressed, in ONNX Runtime on a CPU.

    python benchmarks/encoder_speed.py --out benchmarks/results/cpu-blip-nlvr.json

Random weights and a plan of CoMP's kind (``encoder_plan``), one request at a time, a new image in
every round, dense and compressed in turn. Existing files below ``--work`` are reused. The run directory
there works with ``comp-export inspect``, ``bench`` and ``verify``.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from comp.checkpoints.encoder_shape import PACKAGED, EncoderShape
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.data.embedded import embedded_examples
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.flops.encoder import request_macs, usual_request
from comp.plan import PruningPlan, images_of
from comp.runs import RUN_VERSION, RunDirectory
from comp.utils.console import print_table, say
from comp.utils.files import write_text, writing_directory
from comp.utils.machine import describe_machine, describe_versions
from encoder_plan import describe_plan, find_plan, new_tokens_of
from export.exporter import Origin, artifact_directory, export_artifact
from export.graph.builder import Target
from export.proof.chain import VerifyRequest, verify_run
from random_encoder import encoder_config, prompt_of, write_random_encoder
from rounds import RoundOptions, picture
from run_files import BOTH, Which
from serve.bench.request import BenchRequest, perform
from serve.first_link.links import FromUsers
from serve.generation.results import Timings
from serve.loading import TaskEngine, load_engine
from speed_report import Spread

NEEDED, NEEDED_AT = 4.5, 0.85  # target speed-up, and the rate it is for, on BLIP-base
PARTS = ("vision", "text")


@dataclass(frozen=True)
class Files:
    """The files of one shape, seed and plan; each directory is written atomically."""

    work: Path
    shape: str
    plan: PruningPlan
    target: Target
    seed: int
    small: bool

    @property
    def model(self) -> Path:
        """The directory of the dense model, and above all others."""
        return self.work / f"{self.shape}{'-small' if self.small else ''}-seed{self.seed}"

    @property
    def run(self) -> RunDirectory:
        """The run directory, named by the plan, not by the options that led to it."""
        digest = hashlib.sha256(self.plan.model_dump_json().encode()).hexdigest()
        return RunDirectory(self.model / f"rate-{self.plan.rate:.3f}-{digest[:8]}")

    def artifact(self, which: Which) -> Path:
        return artifact_directory(self.run.path, which == "dense", self.target)

    def make(self) -> None:
        """Write the files that do not exist yet."""
        dense, run = self.model / "checkpoint", self.run
        if not dense.exists():
            say(f"writing the checkpoint {dense}")
            write_random_encoder(self.shape, dense, self.seed, self.small)
        if not run.checkpoint.exists():
            say(f"writing the slim checkpoint {run.checkpoint}")
            run.path.mkdir(parents=True, exist_ok=True)
            with writing_directory(run.checkpoint) as directory:
                load_adapter(dense).cut(self.plan).save(directory)
            self.plan.save(run.plan_file)
            record = {"version": RUN_VERSION, "run": run.path.name, "model": self.shape}
            record |= {"model_path": str(dense.resolve())}
            write_text(run.record, json.dumps(record, indent=1) + "\n")
        sources = {
            "dense": (dense, Origin(self.shape, workload=self.plan.workload)),
            "compressed": (run.checkpoint, Origin.of_plan(self.plan)),
        }
        for which in BOTH:
            out = self.artifact(which)
            if not out.exists():
                say(f"exporting {out}")
                export_artifact(sources[which][0], out, sources[which][1], self.target)


@dataclass(frozen=True)
class Measured:
    """The times of all rounds; ``text`` is everything after the images."""

    timings: dict[Which, list[Timings]]

    def spread(self, which: Which, part: str) -> Spread:
        """Milliseconds of ``vision``, ``text``, both (``request``), or ``prepare``."""
        of = {
            "prepare": lambda t: t.prepare_ms,
            "vision": lambda t: t.vision_ms,
            "text": lambda t: t.prefill_ms + t.decode_ms,
            "request": lambda t: t.vision_ms + t.prefill_ms + t.decode_ms,
        }[part]
        return Spread.of([of(timings) for timings in self.timings[which]])

    def speed_up(self, part: str) -> float:
        """The ratio of the medians, dense over compressed."""
        return self.spread("dense", part).median / self.spread("compressed", part).median

    def by_round(self) -> float:
        """The median of each round's own speed-up, which a slow spell does not change."""
        pairs = zip(self.timings["dense"], self.timings["compressed"], strict=True)
        return median(
            (a.vision_ms + a.prefill_ms + a.decode_ms) / (b.vision_ms + b.prefill_ms + b.decode_ms)
            for a, b in pairs
        )


def measure(files: Files, shape: EncoderShape, args: argparse.Namespace) -> Measured:
    """Run dense and compressed in turn on the same request, with new images in every round.

    Raises:
        CompExportError: an artifact cannot be loaded.
    """
    engines: dict[Which, TaskEngine] = {
        which: load_engine(files.artifact(which), "cpu", args.threads) for which in BOTH
    }
    edge = encoder_config(files.shape, files.small)["vision_config"]["image_size"]
    options = RoundOptions(args.warmup, args.repeats, args.seed, (edge, edge))
    text = prompt_of(shape.family, files.plan.workload.text_tokens)
    timings: dict[Which, list[Timings]] = {which: [] for which in BOTH}
    for turn in range(options.warmup + options.repeats):
        work = _work(engines["dense"], shape, options, turn, text)
        for which in BOTH:
            done = perform(engines[which], work)
            if done.size["text_tokens"] != files.plan.workload.text_tokens and work.texts:
                raise CompExportError(
                    f"the text has {done.size['text_tokens']} tokens, FLOPs are counted of "
                    f"{files.plan.workload.text_tokens}: choose other --text-tokens"
                )
            if turn >= options.warmup:
                timings[which].append(done.timings)
    return Measured(timings)


def _work(
    engine: TaskEngine, shape: EncoderShape, options: RoundOptions, turn: int, text: str
) -> BenchRequest:
    count = images_of(shape.task)
    images: tuple[Image.Image, ...] = tuple(
        picture(options, count * turn + number) for number in range(count)
    )
    texts = () if shape.task == "caption" else (text,)
    return BenchRequest(engine.manifest.task, images, texts, new_tokens_of(shape))


def report_of(
    files: Files, shape: EncoderShape, measured: Measured, proof: dict[str, Any] | None
) -> dict[str, Any]:
    """Times, speed-ups and their share of the FLOPs ratio, by part."""
    plan = files.plan
    cut = SlimShape(shape, shape).planned(plan)
    macs = {
        "dense": _by_part(request_macs(shape, plan.workload, {})),
        "compressed": _by_part(request_macs(cut.slim, plan.workload, cut.ratios)),
    }
    rows = {}
    for part in ("request", *PARTS):
        ratio = macs["dense"][part] / macs["compressed"][part]
        speed_up = measured.speed_up(part)
        rows[part] = {
            **{f"{which}_ms": vars(measured.spread(which, part)) for which in BOTH},
            "speed_up": speed_up,
            "flops_ratio": ratio,
            "speed_up_of_flops": speed_up / ratio,
        }
    return {
        "shape": files.shape,
        "small": files.small,
        "rate": plan.rate,
        "macs": macs,
        "parts": rows,
        "speed_up_by_round": measured.by_round(),
        "prepare_ms": {which: vars(measured.spread(which, "prepare")) for which in BOTH},
        "verified": None if proof is None else proof["ok"],
        "proof": None if proof is None else proof["links"],
        "flavour": files.target.flavour,
        "precision": files.target.precision,
        "plan": describe_plan(plan),
    }


def _by_part(parts: dict[str, int]) -> dict[str, int]:
    whole = sum(parts.values())
    return {"request": whole, "vision": parts["vision"], "text": whole - parts["vision"]}


def markdown(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    machine, load = report["machine"], report["workload"]
    verified = {True: "verified", False: "NOT EQUAL to torch", None: "not verified"}
    request = report["parts"]["request"]
    title = (
        f"# {report['shape']} at rate {report['rate']:.3f}: {request['speed_up']:.2f} times as fast"
    )
    about = (
        f"{machine['cpu']}, {report['threads']} threads, ONNX Runtime "
        f"{report['versions']['onnxruntime']}, {report['precision']}, flavour {report['flavour']}, "
        f"{verified[report['verified']]} against torch. One request: {load['image_tokens']} image "
        f"tokens, {load['text_tokens']} text tokens; {load['repeats']} rounds, dense and compressed in "
        "turn, a new image in each."
    )
    columns = ("part", "dense, ms", "compressed, ms", "speed-up", "FLOPs", "share of FLOPs")
    lines = [title, "", about, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for part, row in report["parts"].items():
        times = [
            f"{s['median']:.1f} ({s['p10']:.1f} to {s['p90']:.1f})"
            for s in (row["dense_ms"], row["compressed_ms"])
        ]
        lines.append(
            f"| {part} | {times[0]} | {times[1]} | {row['speed_up']:.2f}× | {row['flops_ratio']:.2f}× "
            f"| {row['speed_up_of_flops']:.2f} |"
        )
    footer = (
        "Times are medians, and from the tenth to the ninetieth percentile. Median of each round's own "
        f"speed-up: {report['speed_up_by_round']:.2f}×. Preparing the images takes "
        f"{report['prepare_ms']['dense']['median']:.1f} ms with either and is not counted."
    )
    return "\n".join([*lines, "", footer, ""])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the files, verify them, measure, and write the report as JSON and Markdown.

    Raises:
        CompExportError: an option is out of range, a rate out of reach, or the disk full.
    """
    for name, least in (("repeats", 1), ("warmup", 0), ("threads", 1), ("questions", 0)):
        if getattr(args, name) < least:
            raise CompExportError(f"--{name} {getattr(args, name)}: choose {least} or more")
    shape = EncoderShape.from_config(encoder_config(args.shape, args.small), args.shape)
    on = usual_request(shape, args.text_tokens)
    plan = find_plan(shape, args.rate, on, args.shape, args.seed)
    target = Target(args.flavour, "float32")
    files = Files(args.work, args.shape, plan, target, args.seed, args.small)
    files.make()
    proof = _proved(files, args.questions)
    report = {
        **report_of(files, shape, measure(files, shape, args), proof),
        "workload": {
            **on.model_dump(),
            "new_tokens": new_tokens_of(shape),
            "warmup": args.warmup,
            "repeats": args.repeats,
            "seed": args.seed,
        },
        "target": _target(args),
        "threads": args.threads,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    write_text(args.out, json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_text(args.out.with_suffix(".md"), markdown(report))
    return report


def _target(args: argparse.Namespace) -> float | None:
    """The target speed-up of a request; ``None`` for other shapes and rates."""
    base = args.shape.startswith("blip") and not args.small
    return NEEDED if base and args.rate == NEEDED_AT else None


def _proved(files: Files, questions: int) -> dict[str, Any] | None:
    if not questions:
        return None
    say(f"proving both artifacts on {questions} questions")
    task = load_engine(files.artifact("dense"), "cpu").manifest.task
    examples = embedded_examples(task, "test", questions)
    request = VerifyRequest(examples, "EmojiScenes test", questions, max_new_tokens=3)
    first = FromUsers(examples, questions, request.max_new_tokens)
    links = partial(first.of_run, "cpu", lambda name, total: lambda: None)
    return verify_run(files.run, request, links)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description="Latency of a CLIP or a BLIP, dense and compressed, next to the FLOPs ratio."
    )
    add = options.add_argument
    add("--shape", choices=PACKAGED, default="blip-nlvr")
    add("--rate", type=float, default=0.85, help="share of multiply-accumulates to remove")
    add("--work", type=Path, default=Path("benchmarks/work"), help="checkpoints and artifacts")
    add(
        "--out",
        type=Path,
        required=True,
        help="JSON file to write, and Markdown in the same folder",
    )
    add("--flavour", choices=("onnxruntime", "standard"), default="onnxruntime")
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=30)
    add("--warmup", type=int, default=3)
    add("--text-tokens", type=int, help="text tokens [as in published figures]")
    add("--questions", type=int, default=4, help="to verify both artifacts on; 0: not verified")
    add("--seed", type=int, default=0, help="of weights, plan and images")
    add("--small", action="store_true", help="narrow, with few blocks, to try the script")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if measured and, if requested, verified."""
    args = parser().parse_args(arguments)
    try:
        report = run(args)
    except CompExportError as error:
        say(f"Error: {error}")
        return 1
    rows = [
        (
            part,
            f"{row['dense_ms']['median']:.1f}",
            f"{row['compressed_ms']['median']:.1f}",
            f"{row['speed_up']:.2f}",
            f"{row['flops_ratio']:.2f}",
            f"{row['speed_up_of_flops']:.2f}",
        )
        for part, row in report["parts"].items()
    ]
    columns = ("part", "dense ms", "compressed ms", "speed-up", "FLOPs", "share")
    print_table(f"{args.shape} at {report['rate']:.3f}", columns, rows, numbers_from=1)
    if report["target"] is not None:
        met = "is" if report["parts"]["request"]["speed_up"] >= report["target"] else "IS NOT"
        say(f"the target of {report['target']} times as fast {met} met")
    say(f"wrote {args.out}")
    return 1 if report["verified"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
