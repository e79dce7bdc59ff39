"""The real architecture: LLaVA-1.5-7B at full width, random weights.

Few blocks, a quarter of the vocabulary, a picture of 84 pixels: the time is that of moving weights.
"""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from tests.full_width import save_full_width

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_full_width(
        tmp_path_factory.mktemp("full-width") / "llava", 2, -2, edge=84, words=8064
    )


def command(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_prune_export_verify_and_run(checkpoint, tmp_path):
    run = tmp_path / "runs" / "full-width"
    quick = ["--stages", 2, "--steps-per-stage", 1, "--recover-steps", 1, "--batch-size", 1]
    quick += ["--calibration", 1, "--validation", 1]
    pruned = command("prune", "--model", checkpoint, "--rate", 0.3, "--out", run, *quick, "--json")
    assert abs(pruned["rate"] - 0.3) < 0.01
    plan = json.loads((run / "plan.json").read_text())
    assert plan["workload"]["image_tokens"] == 36
    widths = {len(b["kept_channels"]) for b in plan["blocks"] if b["part"] == "language"}
    assert all(width % 64 == 0 for width in widths)
    files = command("onnx", run, "--no-dense", "--no-check", "--json")["files"]
    assert files
    proof = command(
        "verify", run, "--questions", 2, "--max-new-tokens", 3, "--answer-seconds", 0, "--json"
    )
    assert proof["ok"]
    picture = tmp_path / "picture.png"
    from comp.data.emoji_scenes.examples import EmojiScenes

    EmojiScenes("test")[0].image.save(picture)
    answer = command(
        "run", run, "--image", picture, "--prompt", "what is this?", "--max-new-tokens", 3, "--json"
    )
    assert answer["ttft_ms"] > 0
    assert answer["kept"]
