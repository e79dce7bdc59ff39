"""BLIP-base at full width, random weights saved by transformers, through prune, onnx and verify.

CLIP at full width is in tests/official: exported, and answering as transformers does.

They have few blocks and smaller pictures, because whole ones take minutes. tests/benchmarks checks the
sizes of the whole models.

Each command is its own process. Its peak memory stays below the free memory of a machine of 24 GiB.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.flops.encoder import request_macs
from comp.plan import PruningPlan
from tests.benchmarks.conftest import BENCHMARKS
from tests.fresh import run_code, run_command

pytestmark = pytest.mark.slow

LIMIT = 16 * 2**20  # of resident memory, KiB
QUICK = ("--modes", "vt,vp", "--no-cas", "--stages", 2, "--steps-per-stage", 1)  # one of each
ONE = ("--batch-size", 1, "--calibration", 1, "--validation", 1)
WRITE = """
import sys
sys.path.append(sys.argv.pop(1))
from random_encoder import main
sys.exit(main())
"""
UNTRAINED = ("--recover", "none")  # a step of these on two cores takes as long as the rest


@dataclass(frozen=True)
class Case:
    """A shape, its pruning options, its image tokens, and the words of the original checkpoint."""

    shape: str
    blocks: int  # of each tower
    edge: int  # of a picture, in pixels
    options: tuple[str | int, ...]
    image_tokens: int
    words: int


CASES = (
    # The last block merges pictures.
    Case("blip-nlvr", 7, 192, (*UNTRAINED, *ONE), 2 * 145, 30524),
)


def command(*arguments):
    """Return the JSON output of a command in its own process; fail if it fails or takes too much memory."""
    done = run_command(*(str(each) for each in arguments), "--json")
    assert done.status == 0, done.printed + done.errors
    assert done.resident < LIMIT, f"{arguments[0]} took {done.resident / 2**20:.1f} GiB"
    return json.loads(done.printed)


@pytest.fixture
def folder(tmp_path):
    """Remove the folder afterwards: pytest keeps ``tmp_path``, which would be gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.shape)
def test_prune_export_and_verify(case: Case, folder: Path):
    checkpoint, run = folder / "dense", folder / "runs" / case.shape
    words = ["--shape", case.shape, "--out", str(checkpoint)]
    words += ["--blocks", str(case.blocks), "--edge", str(case.edge)]
    done = run_code(WRITE, str(BENCHMARKS), *words)
    assert done.status == 0, done.errors
    assert (checkpoint / "model.safetensors").is_file()
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    added = {each["content"] for each in tokenizer["added_tokens"]}
    assert len(added | set(tokenizer["model"]["vocab"])) == case.words

    pruned = command(
        "prune", "--model", checkpoint, "--rate", 0.25, "--out", run, *QUICK, *case.options
    )
    assert abs(pruned["rate"] - 0.25) < 0.005
    plan = PruningPlan.load(run / "plan.json")
    assert plan.workload.image_tokens == case.image_tokens
    config = json.loads((checkpoint / "config.json").read_text())
    shape = EncoderShape.from_config(config, case.shape)
    cut = SlimShape(shape, shape).planned(plan)
    assert sum(request_macs(cut.slim, plan.workload, cut.ratios).values()) == plan.macs
    counted = command(
        "flops", "--model", run / "checkpoint", "--text-tokens", plan.workload.text_tokens
    )
    assert (counted["macs"], counted["dense"]["macs"]) == (plan.macs, plan.macs_dense)

    exported = command("onnx", run, "--no-check")["artifacts"]
    assert exported["compressed"]["params"] < exported["dense"]["params"]
    assert any(drop.vision_keep_ratio < 1 for drop in plan.drops)
    assert exported["compressed"]["macs"] == plan.macs
    report = command("verify", run, "--questions", 2, "--max-new-tokens", 2, "--answer-seconds", 0)
    assert report["ok"]
    assert [link["name"] for link in report["links"]] == [
        "masked torch = slim torch",
        "slim torch = ONNX Runtime (onnx)",
        "dense torch = ONNX Runtime (onnx-dense)",
    ]
