"""The engine runs where torch and transformers cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

from serve.generation.options import GenerationOptions

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "gradio",
    "matplotlib",
)
PROGRAM = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError("blocked: " + name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
from serve import Engine, GenerationOptions

answers = []
engines = [Engine.load(path, device="cpu", threads=1) for path in sys.argv[3:]]
for engine in engines:
    options = GenerationOptions(max_new_tokens=8, ignore_eos=True)
    answers.append(engine.generate([sys.argv[2]], "where is the fox?", options).token_ids)
import serve.backends.llava_tensorrt, serve.engines.encoder_tensorrt, serve.bench.compare
import serve.commands.run, serve.evaluation.questions
assert not BLOCKED & set(sys.modules)
print(json.dumps(answers))
"""


WALK = """
import importlib, importlib.util, pkgutil, sys, serve

skipped = ["serve.lmms.model"]  # only lmms-eval imports it, which loads torch itself
if importlib.util.find_spec("ray") is None:
    skipped += ["serve.study.on_ray"]
    skipped += ["serve.fleet." + part for part in ("entrance", "running", "replica", "application")]
for module in pkgutil.walk_packages(serve.__path__, "serve."):
    if module.name not in skipped:
        importlib.import_module(module.name)
print(*sorted({"torch", "transformers", "onnx", "onnx_ir"} & sys.modules.keys()))
"""


def test_no_module_of_serve_loads_torch_transformers_or_onnx():
    """Includes indirect imports; import-linter checks only direct ones."""
    done = subprocess.run(
        [sys.executable, "-c", WALK], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


def test_dense_and_compressed_in_one_process_without_torch(
    dense, compressed, dense_artifact, compressed_artifact, picture, tmp_path
):
    path = tmp_path / "picture.png"
    picture.save(path)
    artifacts = [str(dense_artifact), str(compressed_artifact)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(BLOCKED), str(path), *artifacts],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    options = GenerationOptions(max_new_tokens=8, ignore_eos=True)
    expected = [
        list(engine.generate([picture], "where is the fox?", options).token_ids)
        for engine in (dense, compressed)
    ]
    assert json.loads(done.stdout) == expected
