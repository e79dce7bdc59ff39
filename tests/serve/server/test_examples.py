"""The programs in examples/ against a server: each prints the answer that the engine gives."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve.generation.options import GenerationOptions
from tests.serve.random_llava import noise

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
QUESTION = 'what is "left"?'
TOKENS = GenerationOptions(max_new_tokens=32)
# `npm install openai` there; another place is named by the variable.
MODULES = Path(os.environ.get("COMP_EXPORT_NODE_MODULES", ROOT / "node_modules"))


@pytest.fixture
def asked(running, tmp_path):
    """Run a program with a picture and a question; return what it prints."""
    picture = tmp_path / "picture.png"
    noise(4).save(picture)
    own = {"COMP_EXPORT_URL": f"{running.url}/v1", "COMP_EXPORT_MODEL": "tiny-0.4"}

    def result(*program):
        done = subprocess.run(
            [*map(str, program), str(picture), QUESTION],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=os.environ | own,
        )
        assert done.returncode == 0, done.stderr
        return done

    return result


@pytest.fixture
def answer(compressed):
    return compressed.generate([noise(4)], QUESTION, TOKENS)


def test_openais_client(asked, answer):
    done = asked(sys.executable, EXAMPLES / "openai_client.py")
    assert done.stdout.rstrip("\n") == answer.text
    kept = [f"after {place}: {tokens.size} image" for place, tokens in answer.kept.seen()]
    assert all(line in done.stderr for line in kept)


def test_curl(asked, running):
    for tool in ("bash", "curl", "base64"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    done = json.loads(asked("bash", EXAMPLES / "curl.sh").stdout)
    assert done["choices"][0]["message"]["content"]
    assert done["usage"]["prompt_tokens_details"]["image_tokens"] > 0


def test_javascript(asked, answer, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("no node here")
    if not (MODULES / "openai").is_dir():
        pytest.skip("no package openai for node: npm install openai")
    (tmp_path / "node_modules").symlink_to(MODULES, target_is_directory=True)
    program = tmp_path / "client.mjs"
    program.write_bytes((EXAMPLES / "client.mjs").read_bytes())
    assert asked("node", program).stdout.rstrip("\n") == answer.text


def test_langchain(asked, answer):
    if importlib.util.find_spec("langchain_openai") is None:
        pytest.skip("no langchain-openai here: pip install '.[examples]'")
    done = asked(sys.executable, EXAMPLES / "langchain_client.py")
    assert done.stdout.rstrip("\n") == answer.text
