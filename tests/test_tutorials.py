"""The commands of README and tutorials, run in order and as they are written, on a small model and data."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from comp.cli import cli
from tests.comp.small import small_adapter
from tests.pages import README, TUTORIALS, commands

# Added to each command of a verb: the same work with fewer steps, examples and repetitions.
SHORTER = {
    "onnx": "--no-check",
    "prune": "--stages 1 --steps-per-stage 1 --batch-size 4 --calibration 4 --validation 4",
    "verify": "--questions 2 --max-new-tokens 2 --answer-seconds 0",
    "eval": "--limit 4 --max-new-tokens 2",
    "bench": "--warmup 1 --repeats 2 --new-tokens 2 --cold-starts 1",
    "profile": "--rounds 1 --warmup 1 --repeats 1 --held-out 1 --text-tokens 16",
    "run": "--max-new-tokens 2",
    "inspect": "--samples 2",
}
TRAINED = "--recover-steps 1"  # added to prune unless it trains nothing

BYTES = (
    "ONNX Runtime multiplies bytes rightly only on CPUs with VNNI, and random weights round badly"
)

# Only parsed, by tests/comp/commands/test_docs.py.
NOT_RUN = {
    "demo": "serves until it is stopped: tests/demo/test_server.py",
    "serve": "serves until it is stopped: tests/serve/server",
    "study docs/studies/smoke.toml": "prunes and exports several models: tests/serve/study",
    "onnx runs/mine --precision int8": BYTES,
    "onnx runs/mine --precision int8 --no-dense": BYTES,
    "run runs/mine --precision int8 --image picture.png --prompt 'what is on the left?'": BYTES,
    "bench runs/mine --precision int8": BYTES,
    "tensorrt": "needs a GPU",
    "tensorrt --compute-capability 8.9,12.0": "builds for minutes: tests/export/tensorrt",
    "tensorrt --max-batch 4 --max-prompt 512 --max-new-tokens 256": "needs a GPU",
    "run --backend tensorrt --image picture.jpg --prompt 'what is on the left?'": "needs a GPU",
    "bench --against onnxruntime:cuda --against tensorrt": "needs a GPU",
}

# What is said instead of a result: the small model is that fast already.
REFUSED = {"plan --model ./my-llava --target-ms 500": "nothing has to go"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with what the pages say one needs: a checkpoint, questions, pictures."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    lines = []
    for number in range(60):
        picture = pictures / f"{number // 3}.jpg"
        if number % 3 == 0:
            Image.new("RGB", (168, 168), (4 * number, 255 - number, 90)).save(picture)
        question = f"what colour is it? {number % 3}"
        lines.append({"image": picture.name, "question": question, "answer": "red"})
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "mine.jsonl").write_text(text + "\n", encoding="utf-8")
    for name in ("picture.jpg", "picture.png"):
        Image.new("RGB", (168, 168), (200, 30, 90)).save(tmp_path / name)
    return tmp_path


def follow(page: Path, **more: str) -> None:
    """Run the commands of a page in the working directory.

    Args:
        page: README or a tutorial.
        more: options added to a verb's commands, besides those that shorten it.
    """
    followed = 0
    for words in commands(page.read_text(encoding="utf-8")):
        line = shlex.join(words)
        if line in NOT_RUN:
            continue
        added = [*SHORTER.get(words[0], "").split(), *more.get(words[0], "").split()]
        if words[0] == "prune" and "none" not in words:
            added += TRAINED.split()
        result = CliRunner().invoke(cli, [*words, *added])
        said = f"{page.name}: {line}\n{result.output}{result.exception or ''}"
        assert result.exit_code == (line in REFUSED), said
        assert REFUSED.get(line, "") in said
        followed += 1
    assert followed >= 1


def test_what_is_not_run_is_in_the_pages():
    pages = [README, *TUTORIALS.glob("*.md")]
    written = [words for page in pages for words in commands(page.read_text(encoding="utf-8"))]
    assert set(NOT_RUN) <= {shlex.join(words) for words in written}


@pytest.mark.slow
def test_the_pages_about_a_checkpoint_can_be_followed(place):
    small_adapter().save(place / "my-llava")
    (place / "DIR").symlink_to("my-llava")
    little = {"prune": "--rate 0.2"}  # of its tokens, 16 are of the image
    follow(TUTORIALS / "your-llava.md", **little)
    follow(TUTORIALS / "edge-box.md")
    follow(README, **little)
    follow(TUTORIALS / "gpu.md")


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_the_first_run_can_be_followed():
    follow(TUTORIALS / "first-run.md")
