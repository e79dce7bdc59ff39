"""Report measurements as a JSON object and as a table."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np

from comp.checkpoints.llava_shape import ModelShape
from comp.flops.llava import llava_params
from comp.plan import PruningPlan
from plan_shape import describe_plan
from rivals.base import Answered
from rounds import Record
from run_files import BOTH, Which

MEASURES = ("ttft_ms", "tpot_ms", "forward_ms", "prepare_ms")
SPEED_UPS = ("ttft", "tpot", "forward")
TARGET_SHARE = 0.8  # target for TTFT, as a share of the FLOPs ratio
PACKAGES = (
    "comp-export",
    "torch",
    "transformers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "openvino-genai",
    "llama_cpp_python",
    "onnxruntime-genai",
    "tensorrt",
    "tensorrt_rtx",
    "numpy",
    "pillow",
    "tokenizers",
)


@dataclass(frozen=True)
class Spread:
    """A quantity over the repeats."""

    median: float
    min: float
    p10: float
    p90: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, high = np.percentile(values, (10, 90))
        return cls(median(values), min(values), float(low), float(high), max(values))


def contestants_report(
    records: dict[str, Record], flops_ratio: float, reference: str | None
) -> dict[str, Any]:
    """One row for each contestant.

    Args:
        records: measurements by contestant.
        flops_ratio: multiply-accumulates of the dense model over those of the compressed one.
        reference: contestant whose answers are the reference.
    """
    return {
        name: _row(record, flops_ratio, records[reference] if reference else None)
        for name, record in records.items()
    }


def _row(record: Record, flops_ratio: float, reference: Record | None) -> dict[str, Any]:
    row: dict[str, Any] = {"group": record.group}
    for which in BOTH:
        runs = record.runs.get(which)
        row[which] = None
        if runs:
            spreads = {
                measure: vars(Spread.of([getattr(run, measure) for run in runs]))
                for measure in MEASURES
            }
            row[which] = {
                **spreads,
                "repeats": len(runs),
                "same_tokens": _same_tokens(runs, reference, which),
                "notes": record.notes.get(which, {}),
            }
    row["errors"] = dict(record.errors)
    row["speed_up"] = row["speed_up_of_flops"] = row["target_met"] = None
    if row["dense"] and row["compressed"]:
        row["speed_up"] = {
            name: row["dense"][f"{name}_ms"]["median"] / row["compressed"][f"{name}_ms"]["median"]
            for name in SPEED_UPS
            if row["compressed"][f"{name}_ms"]["median"] > 0
        }
        row["speed_up_of_flops"] = {
            name: value / flops_ratio for name, value in row["speed_up"].items()
        }
        row["target_met"] = row["speed_up_of_flops"]["ttft"] >= TARGET_SHARE
    return row


def _same_tokens(runs: list[Answered], reference: Record | None, which: Which) -> float | None:
    """Median number of leading tokens that equal the reference's, over the rounds.

    Half precision rounds differently in each runtime, so answers diverge at the first near tie.
    """
    theirs = reference.runs.get(which) if reference else None
    if not theirs:
        return None
    counts = []
    for mine, other in zip(runs, theirs, strict=True):
        pairs = list(zip(mine.token_ids, other.token_ids, strict=True))
        counts.append(next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs)))
    return float(median(counts))


def model_report(shape: ModelShape, plan: PruningPlan) -> dict[str, Any]:
    """Costs of both models, and the plan."""
    return {
        "rate": plan.rate,
        "flops_ratio": plan.macs_dense / plan.macs,
        "macs": {"dense": plan.macs_dense, "compressed": plan.macs},
        "params": {
            "dense": sum(llava_params(shape).values()),
            "compressed": sum(llava_params(shape.with_plan(plan)).values()),
        },
        "plan": describe_plan(plan),
    }


def describe_device(device: str) -> dict[str, Any]:
    """The GPU with driver and memory in MiB; for a CPU the processor, cores and memory."""
    from comp.utils.machine import describe_machine

    device_info: dict[str, Any] = {"kind": device, "machine": describe_machine()}
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        device_info |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_mb": properties.total_memory // 2**20,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **_nvidia_smi(),
        }
    else:
        device_info["name"] = device_info["machine"]["cpu"]
    return device_info


def _nvidia_smi() -> dict[str, str]:
    """Driver, clock and power limit of the first GPU, as far as nvidia-smi reports them."""
    fields = ("driver_version", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return {name.replace(".", "_"): value for name, value in zip(fields, values, strict=True)}


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the contestants' packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def table_rows(contestants: dict[str, Any]) -> list[tuple[str, ...]]:
    """Contestant, model, TTFT, TPOT, speed-ups, share of the FLOPs' speed-up, target."""
    rows = []
    for name, row in contestants.items():
        for which in BOTH:
            measured = row[which]
            if measured is None:
                rows.append((name, which, row["errors"].get(which, "not measured")[:80], *[""] * 7))
                continue
            after: tuple[str, ...] = ("", "", "", "")
            if which == "compressed" and row["speed_up"]:
                after = (
                    f"{row['speed_up']['ttft']:.2f}×",
                    f"{row['speed_up']['tpot']:.2f}×",
                    f"{row['speed_up_of_flops']['ttft']:.2f}",
                    "met" if row["target_met"] else "missed",
                )
            ttft = measured["ttft_ms"]
            spread = f"{ttft['median']:.2f} ({ttft['p10']:.2f}–{ttft['p90']:.2f})"
            tpot, peak = f"{measured['tpot_ms']['median']:.2f}", measured.get("peak_rss_mb")
            weights = measured["notes"].get("bytes")
            sizes = ("" if size is None else f"{size:,.0f}" for size in (peak, _mib(weights)))
            rows.append((name, which, spread, tpot, *sizes, *after))
    return rows


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


COLUMNS = (
    "contestant",
    "model",
    "TTFT ms (p10–p90)",
    "TPOT ms",
    "peak MiB",
    "files MiB",
    "TTFT",
    "TPOT",
    "TTFT / FLOPs",
    "target",
)
